"""A note is a sentence, and what it is made of."""

import json
import pickle

from dalle_mini.notes import Note

UNKNOWN = Note("unknown", unknown=[("taxi", "car"), ("zebra", None)], more=2995, known="66", such="cat, dog")


def test_a_note_is_its_sentence():
    assert UNKNOWN == ("I have never seen: taxi (nearest: car), zebra, 2,995 more. I know 66 things, such as cat, dog.")
    assert Note("negative", note=UNKNOWN) == f"negative prompt: {UNKNOWN}"


def test_a_note_is_a_text_and_its_facts_in_json():
    note = Note("negative", note=UNKNOWN)
    assert json.loads(json.dumps([note])) == [str(note)]
    facts = json.loads(json.dumps(note.to_dict()))
    assert facts["name"] == "negative"
    assert facts["facts"]["note"]["facts"]["unknown"] == [["taxi", "car"], ["zebra", None]]


def test_a_note_goes_to_another_process_whole():
    again = pickle.loads(pickle.dumps(Note("negative", note=UNKNOWN)))
    assert (again, again.to_dict()) == (Note("negative", note=UNKNOWN), Note("negative", note=UNKNOWN).to_dict())
