"""To the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token

from diptych.apps.export.folder import Source, export_folder
from diptych.predict.loading import HUB_ID


def push_to_hub(
    source: Source, repo_id: str, private: bool | None = None, license: str = "unknown", token: str | None = None
) -> str:
    """Puts what `export_folder` writes on the Hub, where `diptych.load(repo_id)` finds it. Returns the address.

    The repository is made if it is not there: `private` or not, None as the owner's account has it; one that is there
    stays as private as it is. `token`: one that may write, else the one of `hf auth login` or of HF_TOKEN.
    Raises ValueError without a token, for a name that is not `owner/name`, and for what the Hub or the network refuses.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"'{repo_id}' is no name on the Hub: write OWNER/NAME, as in jane/my-albef")
    if token is None and get_token() is None:
        raise ValueError(
            "the Hub asks who you are: log in with `hf auth login`, or set HF_TOKEN to a token that may write "
            "(https://huggingface.co/settings/tokens)"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = export_folder(source, Path(place) / "model", license)
        api = HfApi(token=token)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="A model of diptych")
        except Exception as error:  # whatever a client meets on its way
            told = str(error).strip().splitlines()
            why = told[0] if told else type(error).__name__
            raise ValueError(f"{repo_id} could not be put on the Hub: {why}") from error
    return str(url)
