"""The command's output as text for Modal's log, with its length and digest."""

from __future__ import annotations

import codecs
import hashlib

from skyrl_modal.protocol.result import StreamDigest
from skyrl_modal.protocol.run_folder import write_all


class CountedText:
    """Decodes bytes as UTF-8 and counts the text, so that the caller can check that it received all of it.

    Invalid bytes are replaced, as Modal's log does, so that both sides count the same text.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._hash = hashlib.sha256()
        self._characters = 0

    @property
    def digest(self) -> StreamDigest:
        """Length and digest of the text that was counted."""
        return StreamDigest(characters=self._characters, sha256=self._hash.hexdigest())

    def count(self, data: bytes, *, final: bool = False) -> bytes:
        """Count bytes and return the text that is complete, in UTF-8. An incomplete character is held back.

        Args:
            data: The next bytes.
            final: Whether they are the last ones, so that nothing is held back.
        """
        text = self._decoder.decode(data, final)
        self._characters += len(text)
        encoded = text.encode()
        self._hash.update(encoded)
        return encoded

    def write(self, data: bytes, *, final: bool = False) -> None:
        """Count bytes and write the text that is complete to standard output."""
        write_all(1, self.count(data, final=final))
