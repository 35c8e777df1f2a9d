// SPDX-License-Identifier: MIT

// Package setup makes a GitHub App for a site by GitHub's manifest flow, keeps its
// key and webhook secret in files, and says of an App that exists what it lacks. It
// runs once, beside a person with a browser; the controller does not need it.
package setup
