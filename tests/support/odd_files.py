"""Video files that a look at their packets takes for others than they are, made from ordinary ones; for tests."""

from collections.abc import Callable
from fractions import Fraction

import av

from tests.support.video_files import encode, striped_frames

VP8 = ("libvpx", {"g": "20", "b": "500k", "deadline": "realtime", "cpu-used": "8"})
Packet = tuple[bytes, bool]
_VOP = b"\0\0\1\xb6"


def remux(path, source, change: Callable[[list[Packet]], list[Packet]], times=None):
    """Copy `source` with other packets: `change` gets them all, as (data, whether it is a key frame).

    Without `times`, in ticks, the packets of the copy have those of the packets at the same places.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        changed = change([(bytes(packet), packet.is_keyframe) for packet in packets])
        for i, (data, key) in enumerate(changed):
            packet = av.Packet(data)
            packet.pts, packet.dts = (packets[i].pts, packets[i].dts) if times is None else (times[i], times[i])
            packet.is_keyframe, packet.time_base, packet.stream = key, packets[0].time_base, copy
            new.mux(packet)
    return path


def with_hidden_frames(path, count=60):
    """VP8 of which the last frame of every ten is never shown, as libvpx's alternative references are not."""
    source = encode(path.with_name(f"all_shown{path.suffix}"), striped_frames(count), VP8)

    def hide(packets):
        return [
            (bytes([data[0] & ~0x10]) + data[1:], key) if i % 10 == 9 else (data, key)
            for i, (data, key) in enumerate(packets)
        ]

    return remux(path, source, hide)


def with_notes(path, count=40):
    """H.264 with a packet after every fourth frame that holds a note and no picture."""
    source = encode(path.with_name("without_notes.mp4"), striped_frames(count), ("libx264", {"g": "10", "bf": "0"}))
    note = b"\6\5\x10" + bytes(range(16)) + b"\x80"  # a unit of user data
    sample = len(note).to_bytes(4) + note

    def insert(packets):
        return [each for i, packet in enumerate(packets) for each in ([packet] + [(sample, False)] * (i % 4 == 3))]

    return remux(path, source, insert, times=range(0, 512 * 2 * count, 512))


def packed_mpeg4(path, count=40):
    """MPEG-4 in AVI as XviD and DivX pack it: a B-frame travels with the frame after it, in whose place nothing is."""
    source = encode(path.with_name("unpacked.avi"), striped_frames(count), ("mpeg4", {"g": "12", "bf": "1"}))

    def pack(packets):
        data = [packet for packet, _ in packets]
        first = data[0].replace(_VOP, b"\0\0\1\xb2DivX503b1393p" + _VOP, 1)
        packed, i = [(first, True)], 1
        while i < len(data):
            if _kind(data[i + 1 : i + 2]) == "10":
                packed += [(data[i] + data[i + 1], packets[i][1]), (_not_coded(data[i]), False)]
                i += 2
            else:
                packed.append(packets[i])
                i += 1
        return packed

    return remux(path, source, pack, times=range(count + 1))


def _bits(packet):
    start = packet.index(_VOP) + 4
    return "".join(f"{byte:08b}" for byte in packet[start : start + 6])


def _kind(packets):
    return _bits(packets[0])[:2] if packets else ""


def _not_coded(packet):
    """The picture that says "as before", at the time of the one in `packet`."""
    bits = _bits(packet)
    bits = bits[: bits.index("0", 2) + 8] + "0"  # seconds in unary, a mark, five bits of a thirtieth, a mark
    bits += "0" + "1" * (7 - len(bits) % 8)
    return _VOP + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def in_fields(path, count=12):
    """H.264 of 32 × 32 pixels in which each field has a packet of its own, and a time: two packets are a frame.

    Encoded here, in the standard's uncompressed macroblocks (ITU-T H.264, 7.3): no encoder at hand writes fields.
    """
    sps = _unit(0x67, "010011010000000000011110" + _ue(0, 0, 0, 4, 1) + "0" + _ue(1, 0) + "001" + "00")
    pps = _unit(0x68, _ue(0, 0) + "00" + _ue(0, 0, 0) + "000" + _ue(0, 0, 0) + "100")
    fields = [_field(number // 2, number % 2 == 1, 16 + 4 * number) for number in range(2 * count)]
    fields[0] = sps + pps + fields[0]
    raw = path.with_name("fields.h264")
    raw.write_bytes(b"".join(fields))
    with av.open(str(raw), format="h264") as old, av.open(str(path), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for number, data in enumerate(fields):
            packet = av.Packet(data)
            packet.pts = packet.dts = 20 * number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 1000), copy, number % 2 == 0
            new.mux(packet)
    return path


def _field(frame, is_second, grey):
    """An intra field of two macroblocks; the first of a frame is a restart."""
    kind = 0x21 if is_second else 0x65
    header = _ue(0, 7, 0) + "0000" + "1" + str(int(is_second)) + ("" if is_second else _ue(frame % 2))
    header += f"{int(is_second):08b}" + ("0" if is_second else "00") + _ue(0) + _ue(1)
    bits = header
    for _ in range(2):
        bits += _ue(25)
        bits += "0" * (-len(bits) % 8) + f"{grey:08b}" * 256 + f"{128:08b}" * 128
    return _unit(kind, bits)


def _ue(*numbers):
    """Exp-Golomb codes."""
    return "".join("0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}" for number in numbers)


def _unit(kind, bits):
    bits += "1" + "0" * (-(len(bits) + 1) % 8)
    return b"\0\0\0\1" + bytes([kind]) + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
