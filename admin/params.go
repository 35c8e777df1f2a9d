// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

const (
	maxLimit     = 1000
	defaultLimit = 100
	maxCursor    = 512
)

// queryNames lists the query parameters of an operation.
func queryNames(operation string) []string {
	switch operation {
	case "ListJobs":
		return []string{"state", "repository", "run_id", "limit", "cursor"}
	case "ListRunners":
		return []string{"pool", "host", "phase", "all", "limit", "cursor"}
	case "ListHosts":
		return []string{"state", "limit", "cursor"}
	case "ListPools":
		return []string{"repository", "limit", "cursor"}
	case "ListDeliveries":
		return []string{"status", "limit", "cursor"}
	default:
		return nil
	}
}

// knownParameters refuses a query parameter that an operation does not have, or
// that is empty: a misspelt filter must not look like an answer. One that is
// given twice has been refused before, when it was read.
func knownParameters(next api.StrictHandlerFunc, operation string) api.StrictHandlerFunc {
	names := queryNames(operation)
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
		query := r.URL.Query()
		for _, name := range slices.Sorted(maps.Keys(query)) {
			switch {
			case len(names) == 0:
				return nil, refusal{http.StatusBadRequest, fmt.Sprintf("parameter %.64q is not known: this takes none", name)}
			case !slices.Contains(names, name):
				return nil, refusal{http.StatusBadRequest, fmt.Sprintf("parameter %.64q is not known: this takes %s", name, orList(names))}
			case query.Get(name) == "":
				return nil, refusal{http.StatusBadRequest, fmt.Sprintf("parameter %s is empty: give it a value or leave it out", name)}
			}
		}
		return next(ctx, w, r, request)
	}
}

func givenTwice(name string, n int) string {
	return fmt.Sprintf("parameter %s is given %d times: give it once", name, n)
}

// wantedForm says what a parameter takes whose form the generated code checks.
func wantedForm(name string) string {
	switch name {
	case "limit":
		return fmt.Sprintf("a whole number from 1 to %d", maxLimit)
	case "id", "run_id":
		return "GitHub's id, a whole number from 1"
	case "all":
		return "true or false"
	default:
		return "another form"
	}
}

// given returns the value of a parameter, its zero value if it was left out.
func given[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

func pageOf(limit *int, cursor *string) (fleet.Page, error) {
	p := fleet.Page{Limit: defaultLimit, Cursor: given(cursor)}
	if limit != nil {
		p.Limit = *limit
	}
	if p.Limit < 1 || p.Limit > maxLimit {
		return p, badParameter("limit", wantedForm("limit"))
	}
	if len(p.Cursor) > maxCursor {
		return p, badParameter("cursor", "the `next` of an earlier answer to the same request")
	}
	return p, nil
}

// checkOneOf returns an error that lists the allowed values if one of the others
// is not among them.
func checkOneOf[T ~string](name string, values []T, allowed ...T) error {
	for _, v := range values {
		if !slices.Contains(allowed, v) {
			words := make([]string, len(allowed))
			for i, a := range allowed {
				words[i] = string(a)
			}
			return refusal{http.StatusBadRequest, fmt.Sprintf("parameter %s: %.64q is not one of its values: want %s", name, string(v), orList(words))}
		}
	}
	return nil
}

// repositoryOf reads owner/name.
func repositoryOf(s string) (fleet.Scope, error) {
	scope, err := fleet.ParseScope(s)
	if err != nil || scope.Repo == "" {
		return fleet.Scope{}, badParameter("repository", "owner/name")
	}
	return scope, nil
}

func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// each calls visit with every row of a listing until visit returns false.
func each[T any](fetch func(fleet.Page) ([]T, string, error), visit func(T) bool) error {
	page := fleet.Page{Limit: maxLimit}
	for {
		rows, next, err := fetch(page)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if !visit(row) {
				return nil
			}
		}
		if next == "" {
			return nil
		}
		page.Cursor = next
	}
}
