"""The HTTP server of ``gac serve``, which speaks the OpenAI protocol (extra ``server``)."""
