"""Images in messages: checked bytes, hostile files, places in the text, and what marks do to them."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import struct
import zlib

import PIL.Image
import pytest
from conftest import EMBEDDED
from transformers import AutoTokenizer

from gac_core import Conversation, Image, ImageError, Message, PlacedImage, RequestError
from gac_core.chat.marks import mark_conversation
from gac_core.images import MAX_BYTES, check_total
from gac_core.tokenization.tokenizer import MemberTokenizer


def encoded(mode="RGB", size=(3, 2), form="PNG", colour=None, **options):
    buffer = io.BytesIO()
    PIL.Image.new(mode, size, colour).save(buffer, form, **options)
    return buffer.getvalue()


def png_claiming(width, height):
    """Returns a PNG of a few bytes whose header promises many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


RED = encoded(colour=(255, 0, 0))
BLUE = encoded(colour=(0, 0, 255))
NOISE = Image.open(PIL.Image.effect_noise((64, 64), 80)).data


@pytest.mark.parametrize(
    ("form", "media_type"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_formats_are_known_by_their_bytes(tmp_path, form, media_type):
    data = encoded(form=form, colour=(255, 0, 0))
    path = tmp_path / "picture.bin"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (data, bytearray(data), path, str(path), url, Image(data)):
        image = Image.open(source)
        assert (image.media_type, image.data) == (media_type, data)
    pixels = image.pixels()
    assert (pixels.mode, pixels.size) == ("RGB", (3, 2))
    assert Image.from_url(image.data_url) == pickle.loads(pickle.dumps(image)) == image
    assert repr(data[:4]) not in repr(image)


def test_a_pillow_image_is_encoded_without_loss():
    picture = PIL.Image.effect_noise((9, 7), 80).convert("RGB")
    assert Image.open(picture).pixels().tobytes() == picture.tobytes()
    with pytest.raises(RequestError, match="convert it to RGB"):
        Image.open(picture.convert("HSV"))


def test_digests_differ_as_the_bytes_do():
    assert Image(RED).digest == Image(bytes(RED)).digest
    assert Image(RED).digest != Image(BLUE).digest


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("http://localhost/cat.png", "URLs are never fetched"),
        ("HTTPS://localhost/cat.png", "URLs are never fetched"),
        ("file:///etc/passwd", "URLs are never fetched"),
        ("data:image/png,abc", "not a data: URL in base64"),
        ("data:text/plain;base64,aGVsbG8=", "is not an image"),
        ("data:image/png;base64,%%%%", "is not base64"),
        ("data:image/png;base64,aGVsbG8=", "which is not PNG, JPEG, WebP or GIF"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "which is not PNG"),
        ("nowhere/at/all.png", "cannot be read"),
        ("nul\0byte.png", "cannot be read"),
        (b"", "which is not PNG"),
        (b"BM" + bytes(60), "which is not PNG"),
        (17, "must be a path, bytes"),
        (RED + bytes(MAX_BYTES), "at most 20971520"),
        ("data:image/png;base64," + "A" * (MAX_BYTES * 4 // 3 + 8), "at most 20971520"),
    ],
)
def test_other_sources_are_refused(source, told):
    with pytest.raises(RequestError, match=told):
        Image.open(source)


def test_content_never_opens_paths(tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(RED)
    for part in (
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image_url", "image_url": str(path)},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
        {"type": "image", "image": str(path)},
        {"type": "image", "image": path},
    ):
        with pytest.raises(RequestError, match=r"never fetched|must have an Image"):
            Message("user", ["What is this?", part])


@pytest.mark.parametrize(
    "data",
    [
        RED[:40],
        NOISE[: len(NOISE) // 2],
        encoded(form="JPEG", size=(64, 64))[:300],
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"\xff\xd8\xff",
    ],
)
def test_damaged_files_are_refused_when_decoded(data):
    with pytest.raises(RequestError, match="cannot be decoded"):
        Image(data).pixels()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(8001, 8000), (64_000_001, 1), (12_000, 12_000), (60_000, 60_000)])
def test_decompression_bombs_are_refused_by_their_header(size):
    with pytest.raises(RequestError, match="at most 64000000 pixels"):
        Image(png_claiming(*size)).pixels()


def test_grey_of_16_bits_is_refused():
    with pytest.raises(ImageError, match="convert it to 8 bits"):
        Image(encoded("I;16", colour=40000)).pixels()
    assert Image(encoded("L", colour=156)).pixels().getpixel((0, 0)) == (156, 156, 156)


def test_all_images_of_a_conversation_are_limited_together():
    large = Image(png_claiming(8000, 8000))
    assert large.size == (8000, 8000)
    check_total([large, large])
    with pytest.raises(ImageError, match="3 images of the conversation have 192000000 pixels together"):
        check_total([large, large, large])


def test_orientation_and_transparency_are_read_as_transformers_reads_them():
    from transformers.image_utils import load_image

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    noise = PIL.Image.effect_noise((9, 5), 80)
    palette = noise.convert("P")
    palette.info["transparency"] = 3
    buffers = [io.BytesIO() for _ in range(5)]
    noise.convert("RGB").save(buffers[0], "JPEG", exif=exif)
    noise.convert("CMYK").save(buffers[1], "JPEG")
    palette.save(buffers[2], "PNG", transparency=3)
    noise.convert("RGBA").save(buffers[3], "WEBP", lossless=True)
    noise.convert("P").save(buffers[4], "GIF", save_all=True, append_images=[PIL.Image.new("P", (9, 5))])
    sizes = []
    for buffer in buffers:
        pixels = Image(buffer.getvalue()).pixels()
        assert pixels.tobytes() == load_image(PIL.Image.open(buffer)).tobytes()
        sizes.append(pixels.size)
    assert sizes == [(5, 9), (9, 5), (9, 5), (9, 5), (9, 5)]


def test_content_keeps_the_places_of_images():
    red, blue = Image(RED), Image(BLUE)
    message = Message(
        "user",
        [
            red,
            "Left",
            {"type": "text", "text": " and "},
            {"type": "image", "image": BLUE},
            {"type": "image_url", "image_url": {"url": red.data_url, "detail": "auto"}},
            "right.",
            blue,
        ],
    )
    assert message.content == "Left and right."
    assert message.images == (PlacedImage(red, 0), PlacedImage(blue, 9), PlacedImage(red, 9), PlacedImage(blue, 15))
    assert message.parts == (red, "Left and ", blue, red, "right.", blue)
    assert Message("user", message.parts) == message == copy.deepcopy(message)
    talk = Conversation([{"role": "user", "content": [blue]}, message])
    assert talk.images == (blue, red, blue, red, blue)
    assert [turn.parts for turn in talk.without_images().turns] == [(), ("Left and right.",)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"role": "system", "content": [Image(RED)]}, "role 'user' only"),
        ({"role": "tool", "content": [Image(RED)], "tool_call_id": "1"}, "role 'user' only"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "'input_audio'"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:", "detail": "high"}}]}, "auto"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"uri": "data:"}}]}, "the key 'url'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "the key 'url'"),
        ({"role": "user", "content": "a", "images": [PlacedImage(Image(RED), 2)]}, "between 0 and 1"),
        ({"role": "user", "content": "a", "images": [Image(RED)]}, "give them in its content"),
        ({"role": "user", "content": [Image(RED)], "images": [PlacedImage(Image(RED), 0)]}, "in one of the two"),
    ],
)
def test_wrong_content_is_refused(fields, told):
    with pytest.raises(RequestError, match=told):
        Message(**fields)


def test_marks_do_not_move_images():
    tokenizer = MemberTokenizer(AutoTokenizer.from_pretrained(EMBEDDED[0]), "ash")
    control = max(tokenizer.control_tokens.values(), key=len)
    talk = Conversation([Message("user", [control, Image(RED), f"a{control}b", Image(BLUE), control[:2]])])
    marked, _, _ = mark_conversation(tokenizer, talk, "\ue000")
    parts = marked.turns[0].parts
    assert [part if isinstance(part, Image) else part.replace("\ue000", "") for part in parts] == list(
        talk.turns[0].parts
    )
    assert parts[0].count("\ue000") == parts[2].count("\ue000") == 1
