"""Conversations, tools, rendering with chat templates, and parsing of answers."""
