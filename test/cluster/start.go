package cluster

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Start starts a cluster that ends with the test. Where the test fails, it shows the
// ends of all logs.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	c, err := Run(t.Context(), t.Output(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.logged())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// logged returns the ends of all logs as one error.
func (c *Cluster) logged() error {
	var errs []error
	logs, _ := filepath.Glob(filepath.Join(c.Dir, "log", "*.log")) // the pattern is right
	for _, l := range logs {
		errs = append(errs, fmt.Errorf("%s:\n%s", filepath.Base(l), fileTail(l)))
	}
	for _, n := range c.nodes {
		all := n.Logs()
		for _, name := range slices.Sorted(maps.Keys(all)) {
			errs = append(errs, fmt.Errorf("%s %s:\n%s", n.Name, name, all[name]))
		}
	}
	return errors.Join(errs...)
}

// fileTail returns the end of a log.
func fileTail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return tail(b, 3000)
}

func tail(b []byte, most int) string { return string(b[max(0, len(b)-most):]) }
