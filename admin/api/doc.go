// SPDX-License-Identifier: MIT

// Package api is the operator API as Go: wire types, server interface and
// client, all generated from admin/openapi.yaml, and Connect, which makes a
// client that sends the token and nothing else. It decides nothing; package
// admin implements the server.
package api

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config oapi-codegen.yaml ../openapi.yaml
