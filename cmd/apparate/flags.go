package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// size is a flag value for bytes: "10GiB", "512MiB", "1000000".
type size int64

var units = []struct {
	suffix string
	bytes  int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// Set parses s.
func (v *size) Set(s string) error {
	num, mul := s, int64(1)
	for _, u := range units {
		if strings.HasSuffix(s, u.suffix) {
			num, mul = strings.TrimSpace(strings.TrimSuffix(s, u.suffix)), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/mul {
		return fmt.Errorf("%q is no size: write for example 20GiB or 500MB", s)
	}
	*v = size(n * mul)
	return nil
}

// String writes the size in the largest unit that it is a multiple of.
func (v *size) String() string {
	for _, u := range units[:4] {
		if *v >= size(u.bytes) && int64(*v)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(*v)/u.bytes, u.suffix)
		}
	}
	return strconv.FormatInt(int64(*v), 10)
}

// Type names the value in help texts.
func (v *size) Type() string { return "size" }

// logLevel is a flag value for slog's levels.
type logLevel struct{ slog.Level }

// Set parses s: debug, info, warn or error.
func (l *logLevel) Set(s string) error {
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return fmt.Errorf("%q is no log level: use debug, info, warn or error", s)
	}
	return nil
}

// Type names the value in help texts.
func (l *logLevel) Type() string { return "level" }

func newLogger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
