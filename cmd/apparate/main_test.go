package main

import (
	"testing"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--help"}, 0}, {[]string{"--version"}, 0}, {nil, 0},
		{[]string{"nonsense"}, 2}, {[]string{"convert"}, 2}, {[]string{"mount", "one"}, 2},
		{[]string{"check", "--nonsense", "x"}, 2}, {[]string{"snapshotter", "--cache-size", "many"}, 2},
		{[]string{"snapshotter", "--log-level", "loud"}, 2}, {[]string{"snapshotter", "extra"}, 2},
		{[]string{"mount", "r.example/app:v1", "/nonexistent/dir"}, 1},
		{[]string{"convert", "NOT A REFERENCE"}, 1},
	} {
		if got := run(c.args); got != c.want {
			t.Errorf("apparate %q exits with %d, want %d", c.args, got, c.want)
		}
	}
}

func TestSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "17": 17, "1KiB": 1 << 10, "20GiB": 20 << 30, "3 MiB": 3 << 20, "500MB": 5e8, "2Ti": 2 << 40, "9B": 9,
	} {
		var v size
		if err := v.Set(s); err != nil || int64(v) != want {
			t.Errorf("%q is %d, %v; want %d", s, v, err, want)
		}
	}
	for _, s := range []string{"", "many", "-1", "1.5GiB", "9999999TiB", "GiB"} {
		var v size
		if err := v.Set(s); err == nil {
			t.Errorf("%q is taken as %d", s, v)
		}
	}
	for v, want := range map[size]string{20 << 30: "20GiB", 1500: "1500", 0: "0", 1 << 20: "1MiB"} {
		if got := v.String(); got != want {
			t.Errorf("%d is written %q, want %q", int64(v), got, want)
		}
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 3 << 30: "3.00 GiB"} {
		if got := human(n); got != want {
			t.Errorf("human(%d) = %q, want %q", n, got, want)
		}
	}
}
