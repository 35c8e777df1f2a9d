// SPDX-License-Identifier: MIT

package githubapp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

var (
	errConfigForm = errors.New("the just-in-time config is not in the form that a runner takes")
	errNotOneJob  = errors.New("the just-in-time config is not for an ephemeral runner: it would take more than one job")
	errOtherName  = errors.New("the just-in-time config is for a runner of another name")
)

// CheckConfig makes sure that a config is one of an ephemeral runner of the given
// name. No error says anything of what the config holds.
func CheckConfig(encoded, name string) error {
	outer, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return errConfigForm
	}
	var files map[string][]byte // by name, each in base64: the runner refuses a config with one that is not
	if json.Unmarshal(outer, &files) != nil {
		return errConfigForm
	}
	var settings struct {
		AgentName string `json:"AgentName"`
		Ephemeral truth  `json:"Ephemeral"`
	}
	if json.Unmarshal(bytes.TrimPrefix(files[".runner"], []byte("\xef\xbb\xbf")), &settings) != nil {
		return errConfigForm
	}
	switch {
	case !bool(settings.Ephemeral):
		return errNotOneJob
	case settings.AgentName != name:
		return errOtherName
	default:
		return nil
	}
}

// truth is a boolean that GitHub writes as true, "True" or "true".
type truth bool

// UnmarshalJSON implements json.Unmarshaler.
func (t *truth) UnmarshalJSON(b []byte) error {
	*t = truth(strings.EqualFold(strings.Trim(string(b), `"`), "true"))
	return nil
}
