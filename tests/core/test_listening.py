"""The socket that review and service listen on."""

import asyncio
import socket

from llm4dsr.core.listening import bound, is_loopback


def test_answers_are_sent_without_delay():
    """Head and body of an answer are two writes. With Nagle's algorithm the second waits 40 ms for an answer."""

    async def no_delay() -> int:
        found = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bound("127.0.0.1", 0) as listener:
            assert is_loopback(listener)
            async with await asyncio.start_server(accepted, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                answer = await found
                writer.close()
        return answer

    assert asyncio.run(no_delay())
