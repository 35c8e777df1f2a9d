// SPDX-License-Identifier: MIT

// Package githubapp is the way out to GitHub: it signs in as the GitHub App,
// finds its installations, registers ephemeral runners with a just-in-time
// config, and lists, reads and deletes registrations and jobs. It decides
// nothing: callers choose names, scopes and what to do after an error, which it
// only sorts into kinds that can be told apart. What it caches are installation
// ids, tokens and runner groups, never a config.
package githubapp
