"""Uploads a model to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token

from diptych.apps.export.folder import Source, export_folder
from diptych.predict.loading import HUB_ID


def push_to_hub(
    source: Source, repo_id: str, private: bool | None = None, license: str = "unknown", token: str | None = None
) -> str:
    """Uploads what `export_folder` writes, so that `diptych.load(repo_id)` finds it. Returns the repository's URL.

    A missing repository is created with the visibility `private`, where None follows the owner's account; an existing
    one keeps its visibility. `token` needs write access; None uses the one of `hf auth login` or HF_TOKEN.
    Raises ValueError without a token, for a name that is not `owner/name`, and for errors of the Hub or the network.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"'{repo_id}' is not a name on the Hub: write OWNER/NAME, as in jane/my-albef")
    if token is None and get_token() is None:
        raise ValueError(
            "the Hub requires a login: use `hf auth login`, or set HF_TOKEN to a token with write access "
            "(https://huggingface.co/settings/tokens)"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = export_folder(source, Path(place) / "model", license)
        api = HfApi(token=token)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Upload a model of diptych")
        except Exception as error:  # the client raises errors of several libraries
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise ValueError(f"{repo_id} could not be uploaded to the Hub: {reason}") from error
    return str(url)
