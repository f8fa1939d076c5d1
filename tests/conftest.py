"""A network that ends at this machine; the real parts behind the demo, loaded once for all tests."""

import socket

import pytest

LOCAL = (None, "", b"", "127.0.0.1", "::1", "localhost", "0.0.0.0", "::", socket.gethostname())


@pytest.fixture(autouse=True)
def this_machine_only(monkeypatch):
    """Other machines are out of reach, no name is looked up, proxies are not asked; a test that tries fails at its end.

    At its end, since programs that find no network often go on without.
    """
    tried = []

    def guarded(name, call, host_of):
        def local(*arguments, **named):
            if (host := host_of(*arguments)) not in LOCAL:
                tried.append(host)
                raise ConnectionRefusedError(f"a test went to the network: {name} {host}")
            return call(*arguments, **named)

        return local

    def machine(connection, address):
        return None if connection.family not in (socket.AF_INET, socket.AF_INET6) else address[0]

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name, getattr(socket.socket, name), machine))
    monkeypatch.setattr(socket, "getaddrinfo", guarded("getaddrinfo", socket.getaddrinfo, lambda host=None, *_: host))
    monkeypatch.setenv("no_proxy", "*")
    yield
    assert not tried, f"a test went to the network: {tried}"


@pytest.fixture(scope="session")
def eyes():
    from foveal.demo.eyes import Eyes

    return Eyes.load()


@pytest.fixture(scope="session")
def zero_shot(eyes):
    from foveal.demo.zero_shot import ZeroShot

    return ZeroShot.load(eyes.vision)


@pytest.fixture(scope="session")
def cat():
    return _photo("skimage/chelsea")


@pytest.fixture(scope="session")
def church():
    return _photo("mvtbdata/church")


def _photo(key: str):
    from foveal.data.photos import photos

    return next(photo.images[0] for photo in photos() if photo.key == key)
