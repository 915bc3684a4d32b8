"""Alerts: what people are told by themselves, in Telegram chats and over webhooks."""
