// SPDX-License-Identifier: MIT

// Package admin serves the operator API: what the controller knows of jobs,
// runners, hosts, pools and deliveries, why a job waits, and the few acts of an
// operator. openapi.yaml is its contract; package api is generated from it. It
// stores nothing and decides nothing: it turns what its Store and Explainer say
// into the wire types, behind one static bearer token.
package admin
