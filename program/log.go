// SPDX-License-Identifier: MIT

package program

import (
	"fmt"
	"io"
	"log/slog"
)

// NewLog returns a log to w, from a level up (debug, info, warn, error), in a format
// (text, json). What is wrong with these is said in the words of the configuration.
func NewLog(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log_level %.60q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log_format %.60q: want text or json", format)
	}
}
