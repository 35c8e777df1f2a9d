// SPDX-License-Identifier: MIT

package states

import "golang.org/x/sys/unix"

// systemBuild returns the kernel's release and version.
func systemBuild() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Version[:]), nil
}
