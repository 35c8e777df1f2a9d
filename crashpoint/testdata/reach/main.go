// SPDX-License-Identifier: MIT

// Command reach reaches a point, and says what it lives to say.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/minifleet/minifleet/crashpoint"
)

func main() {
	defer fmt.Println("ended")
	point, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	times, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	fmt.Println(strings.Join(crashpoint.Environ(), " "))
	for i := range times {
		crashpoint.Reached(crashpoint.Point(point))
		fmt.Println("passed", i+1)
	}
}
