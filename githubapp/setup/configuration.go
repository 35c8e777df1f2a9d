// SPDX-License-Identifier: MIT

package setup

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

// Names of the files that Create makes in its folder.
const (
	ConfigFile = "minifleet.yaml"
	KeyFile    = "app.pem"
	SecretFile = "webhook.secret"
	TokenFile  = "admin.token"
)

// configuration is a controller's configuration file for a new App. What has a
// default and no need to be seen is left out.
func configuration(server Server, app githubapp.Self, wish Wish, scopes []fleet.Scope) string {
	var list []string
	for _, s := range scopes {
		list = append(list, s.String())
	}
	hook := fmt.Sprintf("# GitHub delivers to %s: bring that here, through a proxy that ends TLS\nwebhook:\n  address: %s\n", oneLine(wish.Hook), cmp.Or(wish.Address, "127.0.0.1:8080"))
	deliveries := ""
	if wish.Hook == "" {
		hook, deliveries = "", "  deliveries: pull # nothing has to reach this machine\n"
	}
	return fmt.Sprintf(`# Made by minifleet setup for the GitHub App %s: %s
# All keys with their defaults: minifleet config keys. What is wrong: minifleet config check FILE, minifleet setup check --config FILE
database: minifleet.db

%s# Hosts other than this one need TLS here: a public address, cert_file and key_file
agents:
  address: 127.0.0.1:8443
admin:
  address: 127.0.0.1:8090
  token_file: %s

github:
  url: %s
  app_id: %d
  private_key_file: %s
  webhook_secret_file: %s
%s
pools:
  - name: macos
    labels: [self-hosted, macOS, ARM64]
    scopes: [%s]
    # A folder of that name on every host, or a reference: gs://, oci:// or file://
    image: macos
`, oneLine(app.Name), oneLine(app.HTMLURL), hook, TokenFile, server.API, app.ID, KeyFile, SecretFile, deliveries, strings.Join(list, ", "))
}

// oneLine keeps foreign words within a comment.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
