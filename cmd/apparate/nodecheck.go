package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/apparate/apparate/snapshotter/host"
)

func newNodeCheckCommand() *cobra.Command {
	p := host.Preflight{}
	free := size(1 << 30)
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Try what a node needs: FUSE, EROFS, disk, containerd",
		Long: `Looks at everything that lazy images need on this machine, by really mounting where
that is the question, and says of each what there is and what to do. Nothing is
changed and nothing is left.

The exit code is 0 when images can be mounted lazily here, and 1 when not.`,
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("--output %q: use text or json", output)}
			}
			p.MinFree = uint64(free)
			checks := p.Run(cmd.Context())
			if err := printChecks(cmd.OutOrStdout(), checks, output); err != nil {
				return err
			}
			if len(host.Failures(checks)) > 0 {
				return reported{errors.New("images cannot be mounted lazily here")}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Root, "root", "/var/lib/apparate", "directory of snapshots, cache and mounts")
	f.StringVar(&p.Socket, "containerd-socket", "/run/containerd/containerd.sock", "unix socket of containerd")
	f.Var(&free, "min-free", "how much of the disk has to be free")
	f.StringVar(&output, "output", "text", "text or json")
	return cmd
}

func printChecks(w io.Writer, checks []host.Check, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(checks)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.State, c.Found) // Flush tells
		if c.Advice != "" {
			_, _ = fmt.Fprintf(t, "\t\t→ %s\n", c.Advice)
		}
	}
	return t.Flush()
}
