"""Three readers of audio, whole, streaming and of devices: the same samples and the same notes of the same file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from leanear.data.audio import AudioStream, read_waveform, wav_part
from leanear.runtimes.audio.recordings import Recording, wav_layout
from leanear.runtimes.errors import BadInput
from tests.recordings import read_recording
from tests.wav_bytes import RATE_HZ, pcm, wav_bytes


def streamed(path, rate_hz, say):
    with AudioStream(path, rate_hz, say) as stream:
        return stream[0 : 10**9]


READERS = (read_waveform, streamed, read_recording)
SOUND = pcm()
DATA = SOUND.tobytes()
SIZE = len(DATA)
CHUNK = b"LIST" + struct.pack("<I", 6) + b"INFOxx"


def heard(path, content=None, readers=READERS):
    """What the readers made of a file, which has to be the same, and what each of them noted."""
    if content is not None:
        path.write_bytes(content)
    answers, notes = [], []
    for reader in readers:
        said = []
        answers.append(reader(path, RATE_HZ, said.append))
        notes.append(said)
    for answer, said in zip(answers, notes):
        np.testing.assert_array_equal(answer, answers[0])
        assert said == notes[0]
    return answers[0], notes[0]


@pytest.mark.parametrize(
    ("data_size", "riff_size"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x7FFFF000, 0x7FFFF024),
        (0x7FFFFFFF - 36, 0x7FFFFFFF),
        (0x80000000, 0x80000024),
        (0, 36),
        (0, 0),
        (SIZE, SIZE + 36 + 16),
        (SIZE, SIZE + 36 + 1),
        (SIZE, 0),
    ],
)
def test_sizes_that_were_never_filled_in_are_no_truncation(tmp_path, data_size, riff_size):
    samples, notes = heard(tmp_path / "clip.wav", wav_bytes(DATA, data_size=data_size, riff_size=riff_size))
    np.testing.assert_array_equal(samples, SOUND / np.float32(32768))
    assert notes == []


@pytest.mark.parametrize("riff_size", [SIZE + 36, SIZE + 36 + 44])
def test_a_size_that_counts_the_header_too_is_noted(tmp_path, riff_size):
    samples, notes = heard(tmp_path / "clip.wav", wav_bytes(DATA, data_size=SIZE + 44, riff_size=riff_size))
    np.testing.assert_array_equal(samples, SOUND / np.float32(32768))
    assert len(notes) == 1
    assert "clip.wav: its header promises 44 bytes more than the file holds" in notes[0]


@pytest.mark.parametrize("promised", [4_000, 10_958, 8_001])
def test_more_audio_than_a_stale_size_promises_is_read_and_noted(tmp_path, promised):
    content = wav_bytes(DATA, data_size=promised, riff_size=promised + 36)
    samples, notes = heard(tmp_path / "clip.wav", content)
    np.testing.assert_array_equal(samples, SOUND / np.float32(32768))
    assert len(notes) == 1
    assert f"promises {promised:,} bytes of audio, {SIZE - promised:,} more follow" in notes[0]


@pytest.mark.parametrize("behind", [CHUNK, CHUNK + CHUNK, b"\0", CHUNK[:-1] + b"\0" + CHUNK])
def test_chunks_behind_the_audio_are_no_audio_and_nothing_to_note(tmp_path, behind):
    samples, notes = heard(tmp_path / "clip.wav", wav_bytes(DATA, behind=behind))
    np.testing.assert_array_equal(samples, SOUND / np.float32(32768))
    assert notes == []


@pytest.mark.parametrize("empty", [b"", CHUNK])
def test_no_audio_is_no_audio(tmp_path, empty):
    (tmp_path / "clip.wav").write_bytes(wav_bytes(b"", behind=empty))
    for reader in (read_waveform, read_recording):
        with pytest.raises(BadInput, match="zero samples"):
            reader(tmp_path / "clip.wav", RATE_HZ)


def test_odd_chunks_behind_audio_of_an_odd_size_with_and_without_a_pad_byte(tmp_path):
    eight_bits = np.arange(0, 255, dtype=np.uint8)
    for pad in (b"", b"\0"):
        stream = io.BytesIO()
        soundfile.write(stream, (eight_bits - 128.0) / 128, RATE_HZ, format="WAV", subtype="PCM_U8")
        whole = stream.getvalue()
        start = whole.index(b"data") + 8
        samples, notes = heard(tmp_path / "clip.wav", whole[: start + 255] + pad + CHUNK)
        assert len(samples) == 255
        assert notes == []


@pytest.mark.parametrize(
    ("behind", "note"),
    [
        (b"TAG" + b"\0" * 125, "128 bytes behind its audio are no chunk"),
        (wav_bytes(DATA), "another WAV file follows in it, which is not read (16,044 bytes)"),
    ],
)
def test_what_is_behind_the_audio_and_no_chunk_is_noted(tmp_path, behind, note):
    samples, notes = heard(tmp_path / "clip.wav", wav_bytes(DATA, behind=behind))
    np.testing.assert_array_equal(samples, SOUND / np.float32(32768))
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize("name", [b"PEAK", b"fac\xf4", b"\0\0\0\0"])
@pytest.mark.parametrize("content", [b"", b"odd", b"\xff" * 40])
def test_chunks_between_format_and_audio_are_no_matter(tmp_path, name, content):
    whole = wav_bytes(DATA)
    chunk = name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    at = whole.index(b"data")
    samples, notes = heard(tmp_path / "clip.wav", whole[:at] + chunk + whole[at:])
    np.testing.assert_array_equal(samples, SOUND / np.float32(32768))
    assert notes == []


def test_an_extended_format_of_no_known_kind_is_refused(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND, RATE_HZ, format="WAVEX", subtype="PCM_16")
    np.testing.assert_array_equal(heard(path)[0], SOUND / np.float32(32768))
    content = bytearray(path.read_bytes())
    content[content.index(b"fmt ") + 8 + 35] ^= 1
    path.write_bytes(content)
    for reader in READERS:
        with pytest.raises(BadInput, match=r"clip\.wav: "):
            reader(path, RATE_HZ, [].append)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rate_hz", [0, 1, 999, 1_000_001, 2**32 - 1])
def test_rates_that_are_none_of_audio_are_refused(tmp_path, reader, rate_hz):
    content = bytearray(wav_bytes(DATA))
    content[24:28] = struct.pack("<I", rate_hz)
    (tmp_path / "clip.wav").write_bytes(content)
    with pytest.raises(BadInput, match=rf"clip\.wav: ({rate_hz:,} Hz is no sample rate of audio|not readable)"):
        reader(tmp_path / "clip.wav", RATE_HZ, [].append)


@pytest.mark.parametrize("rate_hz", [1_000, 384_000, 1_000_000])
def test_rates_of_slow_and_fast_recorders_are_read(tmp_path, rate_hz):
    content = bytearray(wav_bytes(DATA))
    content[24:28] = struct.pack("<I", rate_hz)
    (tmp_path / "clip.wav").write_bytes(content)
    for reader in READERS:
        wanted = len(SOUND) * RATE_HZ / rate_hz
        assert abs(len(reader(tmp_path / "clip.wav", RATE_HZ, [].append)) - wanted) <= 1


def test_the_part_of_a_sample_that_a_pipe_ends_with_is_left(tmp_path):
    content = wav_bytes(DATA[:-1], data_size=0xFFFFFFFF)
    assert len(heard(tmp_path / "clip.wav", content)[0]) == len(SOUND) - 1


@pytest.mark.parametrize("data_size", [2**28, 0xFFFFFFFF, 0x7FFFF000])
def test_more_than_a_header_can_say_is_read_to_its_end(tmp_path, data_size):
    """A sparse file of 4.25 GB, its size modulo 2**32 or never filled in: sound at its end alone."""
    path, promised = tmp_path / "long.wav", 2**32 + 2**28
    path.write_bytes(wav_bytes(b"", data_size=data_size))
    with open(path, "r+b") as stream:
        stream.truncate(44 + promised - SIZE)
        stream.seek(0, io.SEEK_END)
        stream.write(DATA)
    said = []
    with Recording(path, RATE_HZ, said.append) as recording:
        assert recording.samples == promised // 2
        heard_by_device = recording[promised // 2 - len(SOUND) : promised // 2]
    with open(path, "rb") as stream, soundfile.SoundFile(wav_part(stream, wav_layout(stream, path))) as audio:
        assert audio.frames == promised // 2
        audio.seek(audio.frames - len(SOUND))
        np.testing.assert_array_equal(audio.read(dtype="float32"), heard_by_device)
    np.testing.assert_array_equal(heard_by_device, SOUND / np.float32(32768))
    assert len(said) == (data_size == 2**28)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("lost", [100, SIZE // 2])
def test_a_file_that_was_cut_is_still_refused(tmp_path, reader, lost):
    (tmp_path / "clip.wav").write_bytes(wav_bytes(DATA)[:-lost])
    with pytest.raises(BadInput, match=r"clip\.wav: truncated"):
        reader(tmp_path / "clip.wav", RATE_HZ, [].append)


def test_channels_that_cancel_and_silence_are_noted_and_others_are_not(tmp_path):
    sound = SOUND.astype(np.int32)
    near = np.stack([sound, -sound + 1], axis=1).astype("<i2")
    alike = np.stack([SOUND, SOUND[::-1]], axis=1)
    for stereo, said in ((near, ["its channels cancel"]), (alike, []), (near * 0, ["it is silent: every sample is 0"])):
        _, notes = heard(tmp_path / "clip.wav", wav_bytes(stereo.tobytes(), channels=2))
        assert len(notes) == len(said)
        assert all(each in note and "clip.wav" in note for each, note in zip(said, notes, strict=True))


def test_floats_far_beyond_full_scale_are_noted_and_overshoot_is_not(tmp_path):
    loud = SOUND.astype(np.float32)
    for samples, noted in ((loud, True), (loud / 32768 * 1.9, False)):
        soundfile.write(tmp_path / "clip.wav", samples, RATE_HZ, subtype="FLOAT")
        answer, notes = heard(tmp_path / "clip.wav")
        np.testing.assert_array_equal(answer, samples.astype(np.float32))
        assert len(notes) == noted
        assert all(f"samples up to {np.abs(loud).max():,.0f} where 1 is full scale" in note for note in notes)


def flac_of_unknown_length(path):
    """The FLAC that a program writes into a pipe: no count of samples, no frame sizes, no checksum."""
    soundfile.write(path, SOUND, RATE_HZ)
    content = bytearray(path.read_bytes())
    info = content.index(b"fLaC") + 8
    content[info + 4 : info + 10] = b"\0" * 6
    content[info + 13] &= 0xF0
    content[info + 14 : info + 34] = b"\0" * 20
    path.write_bytes(content)


@pytest.mark.parametrize("reader", [read_waveform, streamed])
def test_a_flac_that_does_not_say_its_length(tmp_path, reader):
    flac_of_unknown_length(tmp_path / "clip.flac")
    np.testing.assert_array_equal(reader(tmp_path / "clip.flac", RATE_HZ, [].append), SOUND / np.float32(32768))


@pytest.mark.parametrize("reader", [read_waveform, streamed])
@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16", "ULAW", "IMA_ADPCM"])
def test_codecs_that_cannot_seek(tmp_path, reader, subtype):
    path = tmp_path / "clip.wav"
    slow = np.sin(np.arange(8_000) * 0.05)
    soundfile.write(path, slow * 0.5, RATE_HZ, subtype=subtype)
    samples = reader(path, RATE_HZ, [].append)
    assert 8_000 <= len(samples) < 9_100, "these codecs fill up their last block"
    lag = int(np.argmax([np.dot(samples[shift : shift + 6_000], slow[:6_000]) for shift in range(500)]))
    assert np.corrcoef(samples[lag : lag + 6_000], slow[:6_000])[0, 1] > 0.95


@pytest.mark.parametrize("reader", [read_waveform, streamed])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_files_put_one_behind_the_other_are_read_whole(tmp_path, reader, subtype):
    parts, whole = [], b""
    for number in range(3):
        path = tmp_path / f"{number}.ogg"
        tone = 0.3 * np.sin(np.arange(RATE_HZ + 1_000 * number) * (0.05 + 0.02 * number))
        soundfile.write(path, tone, RATE_HZ, format="OGG", subtype=subtype)
        parts.append(soundfile.read(path, dtype="float32")[0])
        whole += path.read_bytes()
    (tmp_path / "chained.ogg").write_bytes(whole)
    np.testing.assert_array_equal(reader(tmp_path / "chained.ogg", RATE_HZ, [].append), np.concatenate(parts))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_without_its_end_is_read_as_far_as_it_goes_and_noted(tmp_path, subtype):
    path, notes = tmp_path / "clip.ogg", []
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 9 * RATE_HZ), RATE_HZ, subtype, format="OGG")
    data = path.read_bytes()
    path.write_bytes(data + b"TAG" + bytes(125))
    whole = read_waveform(path, RATE_HZ, notes.append)
    assert notes == []
    last_page = data.rindex(b"OggS")
    for kept in (len(data) // 2, last_page, last_page + 10, len(data) - 1):
        path.write_bytes(data[:kept])
        assert 0 < len(read_waveform(path, RATE_HZ, notes.append)) <= len(whole)
        assert notes == [f"{path}: the OGG stream in it has no end, perhaps it was cut; what is there is read"]
        notes.clear()


def test_a_chain_of_two_sample_rates_is_refused(tmp_path):
    whole = b""
    for rate_hz in (RATE_HZ, 8_000):
        soundfile.write(tmp_path / "part.ogg", np.zeros(4_000), rate_hz)
        whole += (tmp_path / "part.ogg").read_bytes()
    (tmp_path / "chained.ogg").write_bytes(whole)
    with pytest.raises(BadInput, match=r"chained\.ogg: OGG chained of 16000 and 8000 Hz"):
        read_waveform(tmp_path / "chained.ogg", RATE_HZ)


@pytest.mark.parametrize(
    ("container", "subtype", "name"),
    [
        ("RF64", "PCM_16", "RF64"),
        ("W64", "PCM_16", "Wave64"),
        ("AIFF", "PCM_16", "AIFF"),
        ("CAF", "PCM_16", "CAF"),
        ("AU", "PCM_16", "AU"),
        ("FLAC", "PCM_16", "FLAC"),
        ("OGG", "VORBIS", "OGG"),
        ("MP3", "MPEG_LAYER_III", "MP3"),
        ("WAV", "ULAW", "mu-law"),
        ("WAV", "ALAW", "A-law"),
        ("WAV", "MS_ADPCM", "Microsoft ADPCM"),
        ("WAV", "IMA_ADPCM", "IMA ADPCM"),
        ("WAV", "GSM610", "GSM 6.10"),
        ("WAV", "G721_32", "G.721 ADPCM"),
    ],
)
def test_a_device_names_what_it_does_not_read_and_the_workstation_reads_it(tmp_path, container, subtype, name):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND / 32768 * 0.5, RATE_HZ, format=container, subtype=subtype)
    assert len(heard(path, readers=READERS[:2])[0]) >= len(SOUND)
    with pytest.raises(BadInput, match=rf"clip\.wav: .*{name}.*ffmpeg -i FILE -ac 1 -ar 16000 clip\.wav"):
        read_recording(path, RATE_HZ)


@pytest.mark.parametrize(
    ("file", "opening", "name"),
    [("talk.m4a", b"\0\0\0\x20ftypM4A ", "M4A or MP4"), ("talk.wma", b"\x30\x26\xb2\x75 and more", "WMA")],
)
def test_what_libsndfile_does_not_read_is_refused_by_name(tmp_path, file, opening, name):
    (tmp_path / file).write_bytes(opening + b"\0" * 500)
    with pytest.raises(BadInput, match=rf"{file}: {name} is not read; convert it with: ffmpeg -i FILE clip\.flac"):
        read_waveform(tmp_path / file, RATE_HZ)
