// Command init is the first process of a node of a test cluster; see package boot.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/apparate/apparate/test/cluster/boot"
)

// The main function runs on the process's first thread.
func init() { runtime.LockOSThread() }

func main() {
	if err := boot.Run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "boot:", err)
		os.Exit(1)
	}
}
