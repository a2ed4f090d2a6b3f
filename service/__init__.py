"""The service: sessions of recurrent models over HTTP. Never imports torch."""
