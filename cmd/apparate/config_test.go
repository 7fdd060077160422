package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestConfigFile(t *testing.T) {
	for name, c := range map[string]struct {
		text, wrong string
		args        []string
		size        string
		dirs        []string
	}{
		"all":          {text: `{"cache-size": ["10GiB"], "hosts-dir": ["/a", "/b"]}`, size: "10GiB", dirs: []string{"/a", "/b"}},
		"command line": {text: `{"cache-size": ["10GiB"]}`, args: []string{"--cache-size=1GiB"}, size: "1GiB", dirs: []string{"/x"}},
		"empty list":   {text: `{"hosts-dir": []}`, size: "0", dirs: nil},
		"unknown":      {text: `{"chache-size": ["1GiB"]}`, wrong: `no option "chache-size"`},
		"bad value":    {text: `{"cache-size": ["big"]}`, wrong: `cache-size: "big" is no size`},
		"two values":   {text: `{"cache-size": ["1GiB", "2GiB"]}`, wrong: "2 values, want one"},
		"no JSON":      {text: `cache-size=1`, wrong: "write lists of values"},
		"itself":       {text: `{"config": ["x"]}`, wrong: `no option "config"`},
	} {
		file := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var s size
		var dirs []string
		flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
		flags.Var(&s, "cache-size", "")
		flags.StringSliceVar(&dirs, "hosts-dir", []string{"/x"}, "")
		flags.String("config", "", "")
		if err := flags.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		err := applyConfig(flags, file)
		switch {
		case c.wrong != "":
			if err == nil || !strings.Contains(err.Error(), c.wrong) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v, want %q", name, err, c.wrong)
			}
		case err != nil || s.String() != c.size || !slices.Equal(dirs, c.dirs):
			t.Errorf("%s: %s, %v, %v", name, s.String(), dirs, err)
		}
	}
	if err := applyConfig(pflag.NewFlagSet("", 0), "/does/not/exist"); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Error(err)
	}
}
