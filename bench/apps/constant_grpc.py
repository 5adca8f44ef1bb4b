"""A grpc.aio server that reads the message and answers a constant: what gRPC in Python costs by itself.

    python bench/constant_grpc.py PORT

It answers every method.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

ANSWER = bytes(64)
"""About as long as an answer of one number by the Open Inference Protocol."""
MAX_MESSAGE = [("grpc.max_receive_message_length", 64 << 20)]


class Constant(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(answer)


async def answer(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return ANSWER


async def main(port: int) -> None:
    server = grpc.aio.server(options=MAX_MESSAGE)
    server.add_generic_rpc_handlers([Constant()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
