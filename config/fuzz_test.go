// SPDX-License-Identifier: MIT

package config_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/config"
)

// canary is a secret that stands in every fuzzed file.
const canary = "canary-s3cret-canary"

// FuzzLoad gives a file any text before a section with a secret: what is taken is whole
// and valid, and no error shows the secret, wherever the text makes it stand.
func FuzzLoad(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		path := write(t, text+"\ntoken: "+canary+"\n")
		got, err := config.Load[settings](path, "X", environment(nil))
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name the file: %v", err)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows the secret: %v", err)
			}
			return
		}
		if got.Name == "" || got.Validate() != nil || got.Limits.Boot < 0 {
			t.Errorf("taken: %+v", got)
		}
		for _, p := range got.Pools {
			if p.Name == "" || p.Grace.Boot < 0 {
				t.Errorf("taken: %+v", p)
			}
		}
		again, err := config.Load[settings](path, "X", environment(nil))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("read again: %+v, %v; first %+v", again, err, got)
		}
	})
}
