"""Taking one known file out of a zip archive from a stranger. Next: `download.py`."""

import sys
import zipfile
import zlib
from pathlib import Path

from llm.data.registry import DataFile
from llm.data.transfer import CHUNK, DownloadError, Part, Refused


def unpack(archive: Path, file: DataFile, part: Path) -> str:
    """Take the one file out of a zip archive; never more than its known size, never under the archive's own names."""
    most = sys.maxsize if file.size is None else file.size
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(file.member) as stream, Part(part, resume=False) as out:
            while chunk := stream.read(CHUNK):
                if out.size + len(chunk) > most:
                    raise Refused(f"{file.member} in it has more than {most:,} bytes")
                out.write(chunk)
    except DownloadError:
        raise
    except KeyError:
        raise Refused(f"the archive holds no {file.member}") from None
    # RuntimeError: encrypted; NotImplementedError: packed in a way that Python cannot undo
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise Refused(f"the archive is damaged ({error})") from error
    return out.digest.hexdigest()
