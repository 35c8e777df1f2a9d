// SPDX-License-Identifier: MIT

// Package guest is the program inside the VM and the client that the host's
// agent talks to it with. The program starts the runner's listener once, with
// a JIT config in its environment, follows its output and exit, and reports
// one Status; the client asks for it over any connection that the caller
// dials, and believes nothing it has not checked, because a guest is hostile
// once its job runs. The package knows nothing of GitHub's API, of the
// controller, or of how the connection reaches the VM.
package guest
