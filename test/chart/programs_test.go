package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/apparate/apparate/test/tools"
)

// help builds a program as `make build` does and returns what its --help says.
func help(t *testing.T, command ...string) string {
	t.Helper()
	path := filepath.Join(home, command[0])
	if _, err := os.Stat(path); err != nil {
		if err := tools.GoBuild(t.Context(), t.Output(), command[0], root, path, "-ldflags", "-s -w", "./cmd/"+command[0]); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), path, append(command[1:], "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v --help: %v\n%s", command, err, out)
	}
	return string(out)
}

func intOrString(n int) intstr.IntOrString { return intstr.FromInt32(int32(n)) }
