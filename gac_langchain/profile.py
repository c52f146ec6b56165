"""What a chat model can do, in LangChain's words."""

from __future__ import annotations

from langchain_core.language_models.model_profile import ModelProfile


def model_profile(context: int | None, max_tokens: int, reads_images: bool) -> ModelProfile:
    """Returns a model's profile.

    Args:
        context: The longest text that its members can read, in tokens; None without a limit.
        max_tokens: Its longest answer, in tokens.
        reads_images: Whether a member reads images. URLs of images are never fetched, and messages of tools hold text.
    """
    profile: ModelProfile = {
        "max_output_tokens": max_tokens,
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": reads_images,
        "image_url_inputs": False,
        "image_tool_message": False,
        "audio_inputs": False,
        "video_inputs": False,
        "pdf_inputs": False,
        "pdf_tool_message": False,
        "tool_calling": True,
        "tool_choice": True,
        "structured_output": True,
    }
    return profile if context is None else {**profile, "max_input_tokens": context}
