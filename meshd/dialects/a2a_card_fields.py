"""An agent's card of 1.0 as protobuf writes it. A test holds the table against the official descriptor."""

from __future__ import annotations

from typing import Final

from meshd.dialects.protobuf import FLAG, STRUCT, MapOf, Member, Table

_TEXTS: Final = MapOf("text")
_STRINGS: Final[Table] = {1: Member("list", is_repeated=True)}
_REQUIREMENT: Final[Table] = {1: Member("schemes", MapOf(_STRINGS), is_repeated=True)}
_FLOWS: Final[Table] = {
    1: Member(
        "authorizationCode",
        {
            1: Member("authorizationUrl"), 2: Member("tokenUrl"), 3: Member("refreshUrl"),
            4: Member("scopes", _TEXTS, is_repeated=True), 5: Member("pkceRequired", FLAG),
        },
    ),
    2: Member(
        "clientCredentials",
        {1: Member("tokenUrl"), 2: Member("refreshUrl"), 3: Member("scopes", _TEXTS, is_repeated=True)},
    ),
    3: Member(
        "implicit",
        {1: Member("authorizationUrl"), 2: Member("refreshUrl"), 3: Member("scopes", _TEXTS, is_repeated=True)},
    ),
    4: Member(
        "password", {1: Member("tokenUrl"), 2: Member("refreshUrl"), 3: Member("scopes", _TEXTS, is_repeated=True)}
    ),
    5: Member(
        "deviceCode",
        {
            1: Member("deviceAuthorizationUrl"), 2: Member("tokenUrl"), 3: Member("refreshUrl"),
            4: Member("scopes", _TEXTS, is_repeated=True),
        },
    ),
}  # fmt: skip
_SCHEME: Final[Table] = {
    1: Member("apiKeySecurityScheme", {1: Member("description"), 2: Member("location"), 3: Member("name")}),
    2: Member("httpAuthSecurityScheme", {1: Member("description"), 2: Member("scheme"), 3: Member("bearerFormat")}),
    3: Member(
        "oauth2SecurityScheme",
        {1: Member("description"), 2: Member("flows", _FLOWS), 3: Member("oauth2MetadataUrl")},
    ),
    4: Member("openIdConnectSecurityScheme", {1: Member("description"), 2: Member("openIdConnectUrl")}),
    5: Member("mtlsSecurityScheme", {1: Member("description")}),
}
_EXTENSION: Final[Table] = {
    1: Member("uri"), 2: Member("description"), 3: Member("required", FLAG), 4: Member("params", STRUCT),
}  # fmt: skip
_SKILL: Final[Table] = {
    1: Member("id"), 2: Member("name"), 3: Member("description"), 4: Member("tags", is_repeated=True),
    5: Member("examples", is_repeated=True), 6: Member("inputModes", is_repeated=True),
    7: Member("outputModes", is_repeated=True), 8: Member("securityRequirements", _REQUIREMENT, is_repeated=True),
}  # fmt: skip

CARD: Final[Table] = {
    1: Member("name"), 2: Member("description"),
    3: Member(
        "supportedInterfaces",
        {1: Member("url"), 2: Member("protocolBinding"), 3: Member("tenant"), 4: Member("protocolVersion")},
        is_repeated=True,
    ),
    4: Member("provider", {1: Member("url"), 2: Member("organization")}), 5: Member("version"),
    6: Member("documentationUrl"),
    7: Member(
        "capabilities",
        {
            1: Member("streaming", FLAG), 2: Member("pushNotifications", FLAG),
            3: Member("extensions", _EXTENSION, is_repeated=True), 4: Member("extendedAgentCard", FLAG),
        },
    ),
    8: Member("securitySchemes", MapOf(_SCHEME), is_repeated=True),
    9: Member("securityRequirements", _REQUIREMENT, is_repeated=True),
    10: Member("defaultInputModes", is_repeated=True), 11: Member("defaultOutputModes", is_repeated=True),
    12: Member("skills", _SKILL, is_repeated=True),
    13: Member(
        "signatures", {1: Member("protected"), 2: Member("signature"), 3: Member("header", STRUCT)}, is_repeated=True
    ),
    14: Member("iconUrl"),
}  # fmt: skip
