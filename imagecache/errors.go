// SPDX-License-Identifier: MIT

package imagecache

import (
	"fmt"
	"strings"
)

// NotFoundError says that there is no such image, and which there are.
type NotFoundError struct {
	Ref       string
	Dir       string
	Available []string
}

func (e *NotFoundError) Error() string {
	there := "there is none"
	if len(e.Available) > 0 {
		there = "there are: " + strings.Join(e.Available, ", ")
	}
	return fmt.Sprintf("image %s is not in %s (%s): name one of these in the pool, or put the image's folder there", e.Ref, e.Dir, there)
}

// DigestError says that an image is there, but in another version than was asked for.
type DigestError struct{ Name, Want, Have string }

func (e *DigestError) Error() string {
	return fmt.Sprintf("image %s has the digest %s, and %s was asked for: put that version there, or change the pool", e.Name, e.Have, e.Want)
}
