package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/converter"
)

// terminationLog is where the kubelet looks for a container's last words.
const terminationLog = "/dev/termination-log"

// newRunConversionCommand is what the container of a conversion's Job runs.
func newRunConversionCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "run-conversion",
		Short:  "Run one conversion, as the Jobs of --conversion-mode=job do",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := runConversion(cmd)
			text, bad := conversion.NewJobResult(result, err)
			if bad == nil {
				bad = os.WriteFile(terminationLog, text, 0o600)
			}
			return errors.Join(err, bad)
		},
	}
}

func runConversion(cmd *cobra.Command) (converter.Result, error) {
	var req conversion.JobRequest
	if err := json.Unmarshal([]byte(os.Getenv(conversion.JobRequestEnv)), &req); err != nil {
		return converter.Result{}, usageError{fmt.Errorf("the environment variable %s has no request: this command is for Jobs of the operator", conversion.JobRequestEnv)}
	}
	credentials, err := optional(filepath.Join(conversion.JobCredentials, corev1.DockerConfigJsonKey))
	if err != nil {
		return converter.Result{}, err
	}
	ca, err := optional(filepath.Join(conversion.JobCA, "ca.crt"))
	if err != nil {
		return converter.Result{}, err
	}
	o, err := registry.NewOptions(req.Host, credentials, ca)
	if err != nil {
		return converter.Result{}, err
	}
	c := converter.New(converter.Options{TempDir: req.TempDir, Keychain: o.Keychain, Transport: o.Transport})
	return c.Convert(cmd.Context(), req.Request)
}

// optional reads a file that may not be there.
func optional(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
