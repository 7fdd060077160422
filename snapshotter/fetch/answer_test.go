package fetch

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	for _, c := range []struct {
		in                string
		start, end, total int64
		ok                bool
	}{
		{"bytes 0-99/100", 0, 99, 100, true},
		{"Bytes 5-5/6", 5, 5, 6, true},
		{"bytes 0-99/*", 0, 99, -1, true},
		{"bytes */100", -1, -1, 100, true},
		{in: "bytes */*"}, {in: ""}, {in: "bytes"}, {in: "bytes 0-99"}, {in: "bytes 0/5"}, {in: "items 0-1/2"},
		{in: "bytes 5-4/10"}, {in: "bytes 0-10/10"}, {in: "bytes -1-4/10"}, {in: "bytes 0-+4/10"},
		{in: "bytes 0-99999999999999999999/*"}, {in: "bytes 0-9223372036854775807/*"}, {in: "bytes  0-1/2"},
	} {
		start, end, total, ok := parseContentRange(c.in)
		if ok != c.ok || (ok && (start != c.start || end != c.end || total != c.total)) {
			t.Errorf("%q = %d, %d, %d, %v", c.in, start, end, total, ok)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/100", "bytes */100", "bytes 0-1/*", "bytes 9223372036854775806-9223372036854775807/*", "x", "bytes -/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, ok := parseContentRange(s)
		if !ok {
			return
		}
		if start == -1 && end == -1 && total >= 0 {
			return
		}
		if start < 0 || end < start || end+1 <= start || (total >= 0 && end >= total) {
			t.Errorf("%q = %d, %d, %d", s, start, end, total)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":      0,
		"0":     0,
		"7":     7 * time.Second,
		"-1":    0,
		"soon":  0,
		"99999": 24 * time.Hour,
		now.Add(time.Minute).Format(http.TimeFormat):  time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat): 0,
		strconv.FormatInt(1<<62, 10):                  24 * time.Hour,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q = %s, want %s", in, got, want)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"Get https://s3.test/b?X-Sig=abc&Expires=1: gone": "Get https://s3.test/b gone",
		"Get \"https://s3.test/b?X-Sig=abc\": gone":       "Get \"https://s3.test/b\": gone",
		"https://user:pass@host/x":                        "https://host/x",
		"sent Authorization: Basic dXNlcjpwYXNz":          "sent Authorization: Basic ***",
		"Bearer eyJhbGciOiJIUzI1NiJ9.e30 refused":         "Bearer *** refused",
		`{"token": "abcdef"}`:                             `{"token": "***"}`,
		"password=hunter2, user=x":                        "password=***, user=x",
		"Your authorization token has expired":            "Your authorization token has expired",
		"fetch token: unexpected status":                  "fetch token: unexpected status",
		"no basic auth credentials":                       "no basic auth credentials",
		"x " + strings.Repeat("y", 200) + " z":            "x *** z",
		"sha256:" + strings.Repeat("0", 64):               "sha256:" + strings.Repeat("0", 64),
	} {
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
	if got := short("a\x00b\n\n c\x1b[31m" + strings.Repeat(" é", 300)); strings.ContainsAny(got, "\x00\n\x1b") || len(got) > maxMessage+3 {
		t.Errorf("short = %q", got)
	}
	cause := errors.New("https://h/p?sig=1")
	if err := Redact(cause); !errors.Is(err, cause) || err.Error() != "https://h/p" {
		t.Errorf("Redact = %v", err)
	}
}
