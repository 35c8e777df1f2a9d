// SPDX-License-Identifier: MIT

// Package githubsim is a simulated GitHub for one App: the REST API that a
// runner controller calls, the App's webhooks, and the Actions service that a
// runner client talks to. It behaves as github.com has been seen to behave,
// misbehaviour included: late, repeated and reordered deliveries, lagging
// lists, enforced rate limits, calls that take effect and then time out.
// It owns no policy and knows nothing of the product that it exercises; what a
// test or a demo wants of it comes through Sim's methods or the control API.
package githubsim
