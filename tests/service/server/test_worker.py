"""The server of a worker accepts the connections that wait when it stops."""

from typing import Any

import gevent.socket
import pytest
from gevent.pool import Pool

from onward.service.server.worker import Server


@pytest.mark.parametrize(("room", "most_waiting", "expected"), [(100, 100, 20), (7, 100, 7), (100, 5, 5)])
def test_waiting_connections_are_accepted_before_the_listening_socket_closes(
    room: int, most_waiting: int, expected: int
) -> None:
    """The server accepts at most as many as the worker has room for, and as many as the backlog can hold."""
    handled: list[Any] = []
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        clients = [gevent.socket.create_connection(listening.getsockname()) for _ in range(20)]
        pool = Pool(room)
        server = Server(listening, handle=lambda _, address: handled.append(address), spawn=pool)
        server.most_waiting = most_waiting
        server.start()
        server.close()  # before the event loop has turned
        pool.join()
        assert handled == [client.getsockname() for client in clients[:expected]]
        for client in clients:
            client.close()
