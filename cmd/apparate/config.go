package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/pflag"
)

// applyConfig sets the flags that a configuration file names and the command line does
// not: a JSON object of lists of values by the names of the flags. An empty name of
// the file is none.
func applyConfig(flags *pflag.FlagSet, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	var options map[string][]string
	if err := json.Unmarshal(text, &options); err != nil {
		return fmt.Errorf("--config %s: %w: write lists of values by names of options", file, err)
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		f := flags.Lookup(name)
		if f == nil || name == "config" {
			return fmt.Errorf("--config %s: there is no option %q", file, name)
		}
		if f.Changed {
			continue
		}
		if s, ok := f.Value.(pflag.SliceValue); ok {
			err = s.Replace(options[name])
		} else if len(options[name]) != 1 {
			err = fmt.Errorf("%d values, want one", len(options[name]))
		} else {
			err = f.Value.Set(options[name][0])
		}
		if err != nil {
			return fmt.Errorf("--config %s: %s: %w", file, name, err)
		}
	}
	return nil
}
