# An image of the service with the models that ship. `docker compose up` builds and runs it; see docs/deploy.md.

# The image of the build stage. Its Python must have the version of the final stage, and its headers.
ARG BUILDER=python:3.11-slim
# hadolint ignore=DL3006
FROM ${BUILDER} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# gunicorn-h1c is compiled; the compiler, of any version, stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends gcc libc6-dev > /dev/null
COPY pyproject.toml constraints.txt ./
# Dependencies are installed before the code is copied, so that a change of the code does not install them again. The
# virtual environment contains no pip: pip installs into it from outside. The tests of packages (23 MB) are removed.
RUN python -m venv --without-pip /opt/onward \
 && python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], *project['optional-dependencies']['lane'], *project['optional-dependencies']['redis'], sep='\n')" > requirements.txt \
 && python -m pip install --quiet --constraint constraints.txt pip \
 && python -m pip --python /opt/onward/bin/python install --quiet --constraint constraints.txt --requirement requirements.txt \
 && find /opt/onward -depth -type d -name tests -exec rm -r {} +
COPY LICENSE NOTICE README.md ./
COPY onward onward
COPY examples examples
COPY client client
COPY model model
COPY service service
COPY training training
RUN python -m pip --python /opt/onward/bin/python install --quiet --no-deps --build-constraint constraints.txt '.[lane,redis]'

FROM python:3.11-slim
RUN groupadd --system --gid 10001 onward \
 && useradd --system --uid 10001 --gid onward --no-create-home --home-dir /data --shell /usr/sbin/nologin onward \
 && install --directory --owner onward --group onward --mode 0700 /data
COPY --from=build /opt/onward /opt/onward
# Anyone who reaches the port may use the service; docker-compose.yml publishes the port to this machine only.
ENV PATH=/opt/onward/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ONWARD_BIND=0.0.0.0:8000 \
    ONWARD_ALLOW_ANYONE=1 \
    ONWARD_STORE=lmdb:///data/sessions
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
  "import os, urllib.request as web; port = os.environ['ONWARD_BIND'].rpartition(':')[2]; \
web.build_opener(web.ProxyHandler({})).open(f'http://127.0.0.1:{port}/readyz', timeout=4)"]
CMD ["onward", "serve"]
