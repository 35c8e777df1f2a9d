// SPDX-License-Identifier: MIT

package states

import "golang.org/x/sys/unix"

// systemBuild returns the build of macOS, such as 25A354.
func systemBuild() (string, error) { return unix.Sysctl("kern.osversion") }
