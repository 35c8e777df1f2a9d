// SPDX-License-Identifier: MIT

package layout

import "fmt"

func validateName(name string) error {
	if name == "" || len(name) > 100 {
		return fmt.Errorf("image name %.120q has %d characters: give 1 to %d of a-z, 0-9, '.', '_' and '-'", name, len(name), 100)
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fmt.Errorf("image name %q: use a-z, 0-9, '.', '_' and '-', and start with a letter or a digit", name)
		}
	}
	return nil
}
