"""The camera's memory: bounded, in order, and no loss is silent."""

import asyncio

import numpy as np
import pytest

from drivers.api import Frame, MissingFrames, Pose
from drivers.errors import LinkLost
from drivers.software_camera import FrameBuffer, until
from simulator.clock import VirtualTimeLoop


def frame(number: int) -> Frame:
    pixels = np.zeros((2, 2, 3), np.uint8)
    return Frame(pixels, number, 0.0, 1.0, Pose(0.0, 0.0, 0.0, "20x"), 384.0, 8)


def drained(buffer: FrameBuffer) -> list[int | MissingFrames]:
    async def main() -> list[int | MissingFrames]:
        return [item.number if isinstance(item, Frame) else item async for item in buffer]

    return asyncio.run(main())


def test_what_finds_no_room_is_one_record() -> None:
    buffer = FrameBuffer(2)
    for number in range(6):
        buffer.put(frame(number))
    buffer.end()
    assert drained(buffer) == [0, 1, MissingFrames(2, 5, "frame buffer full")]


def test_records_are_joined_only_where_number_and_reason_agree() -> None:
    buffer = FrameBuffer(2)
    for number, reason in ((0, "a"), (1, "a"), (2, "b"), (4, "b")):
        buffer.miss(number, reason)
    buffer.end()
    assert drained(buffer) == [
        MissingFrames(0, 1, "a"),
        MissingFrames(2, 2, "b"),
        MissingFrames(4, 4, "b"),
    ]


def test_room_comes_back_when_frames_are_fetched() -> None:
    async def main() -> None:
        buffer = FrameBuffer(1)
        for number in range(3):
            buffer.put(frame(number))
            item = await anext(buffer)
            assert isinstance(item, Frame)
            assert item.number == number

    asyncio.run(main())


def test_an_error_comes_after_what_is_left_and_again_if_asked_again() -> None:
    async def main() -> None:
        buffer = FrameBuffer(4)
        buffer.put(frame(0))
        buffer.fail(LinkLost("camera", "gone"))
        assert isinstance(await anext(buffer), Frame)
        for _ in range(2):
            with pytest.raises(LinkLost):
                await anext(buffer)

    asyncio.run(main())


def test_a_waiting_consumer_is_woken() -> None:
    async def main() -> list[int]:
        buffer, seen = FrameBuffer(4), []

        async def consume() -> None:
            async for item in buffer:
                assert isinstance(item, Frame)
                seen.append(item.number)

        async with asyncio.TaskGroup() as group:
            group.create_task(consume())
            for number in range(3):
                await asyncio.sleep(0)
                buffer.put(frame(number))
            await asyncio.sleep(0)
            buffer.end()
        return seen

    assert asyncio.run(main()) == [0, 1, 2]


def test_until_is_never_early() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for step in range(50):
            moment_s = loop.time() + 1e-4 * step
            await until(moment_s)
            assert loop.time() >= moment_s
        await until(loop.time() - 1)  # long past

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
