"""What a session last said of itself: modes, configuration options, models, title, commands.

Taken from the answer that opened it and kept up by the agent's updates, so that a client that
attaches later is told the present state and not the first one.
"""

from __future__ import annotations

from typing import Any

from acp_gateway.wire.json_codec import JsonError, loads, valid_utf8


def usage_in(line: bytes) -> Any:
    """``_meta.usage`` of a ``session/update`` line; None where there is none."""
    try:
        update = loads(valid_utf8(line))["params"]["update"]
        return update["_meta"]["usage"]
    except (JsonError, KeyError, TypeError):
        return None


class SessionState:
    def __init__(self) -> None:
        self.modes: dict[str, Any] | None = None
        self.config_options: list[Any] | None = None
        self.models: dict[str, Any] | None = None
        self.title: str | None = None
        self.commands: list[Any] = []
        self.skills: list[Any] = []
        self.usage: dict[str, Any] | None = None
        """The last ``usage_update``: tokens in the context, and what fits."""
        self.meta: dict[str, Any] = {}

    def opened(self, result: dict[str, Any]) -> None:
        """Take over the answer to new, load or resume."""
        modes, models = result.get("modes"), result.get("models")
        options, meta = result.get("configOptions"), result.get("_meta")
        self.meta = meta if isinstance(meta, dict) else {}
        if isinstance(modes, dict):
            self.modes = modes
            _name_items(modes.get("availableModes"), "id")
        if isinstance(models, dict):
            self.models = models
            _name_items(models.get("availableModels"), "modelId")
        if isinstance(options, list):
            self.config_options = options

    def note(self, kind: str, line: bytes) -> None:
        """Take over an update, a ``session/update`` line; what cannot be read changes nothing."""
        try:
            update = loads(valid_utf8(line))["params"]["update"]
        except JsonError:
            return
        if kind == "current_mode_update":
            self.set_mode(update.get("currentModeId"))
        elif kind == "config_option_update":
            options = update.get("configOptions")
            if isinstance(options, list):
                self.config_options = options
        elif kind == "session_info_update":
            if "title" in update:
                title = update["title"]
                self.title = title if isinstance(title, str) else None
        elif kind == "available_commands_update":
            commands = update.get("availableCommands")
            self.commands = commands if isinstance(commands, list) else []
            meta = update.get("_meta")
            skills = meta.get("availableSkills") if isinstance(meta, dict) else None
            self.skills = skills if isinstance(skills, list) else []
        elif kind == "usage_update":
            self.usage = update

    @property
    def mode(self) -> str | None:
        mode = None if self.modes is None else self.modes.get("currentModeId")
        return mode if isinstance(mode, str) else None

    @property
    def model(self) -> str | None:
        """From the models, else from the configuration option that stands for them."""
        model = None if self.models is None else self.models.get("currentModelId")
        option = self.option("model") if model is None else None
        if option is not None:
            model = option.get("currentValue")
        return model if isinstance(model, str) else None

    @property
    def offered_models(self) -> list[dict[str, Any]]:
        """``{modelId, name, …}`` of each model, also where they are a configuration option."""
        models = (self.models or {}).get("availableModels")
        if isinstance(models, list):
            return [each for each in models if isinstance(each, dict) and "modelId" in each]
        options = (self.option("model") or {}).get("options")
        return [
            {"modelId": each["value"], "name": each.get("name")}
            for each in (options if isinstance(options, list) else ())
            if isinstance(each, dict) and "value" in each
        ]

    def option(self, category: str) -> dict[str, Any] | None:
        """The first configuration option of this category (ACP v1)."""
        for each in self.config_options or ():
            if isinstance(each, dict) and category in (each.get("category"), each.get("id")):
                return each
        return None

    def set_mode(self, mode_id: Any) -> None:
        if self.modes is not None and isinstance(mode_id, str):
            self.modes["currentModeId"] = mode_id

    def set_model(self, model_id: Any) -> None:
        if self.models is not None and isinstance(model_id, str):
            self.models["currentModelId"] = model_id

    @property
    def cost(self) -> Any:
        """What the agent says that the session has cost so far (``usage_update``, ACP v1)."""
        return None if self.usage is None else self.usage.get("cost")

    def as_result(self) -> dict[str, Any]:
        """The members that new, load and resume answer with."""
        parts = {
            "modes": self.modes,
            "configOptions": self.config_options,
            "models": self.models,
        }
        return {name: value for name, value in parts.items() if value is not None}


def _name_items(items: Any, id_key: str) -> None:
    # ``name`` is required by the schema and is what a client shows; some agents leave it out.
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and id_key in item:
            item.setdefault("name", item[id_key])
