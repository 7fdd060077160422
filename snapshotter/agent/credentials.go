package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/apparate/apparate/snapshotter/service"
)

// podsFile is written by Options.PodCredentials.
const podsFile = "pods.json"

// handOver copies the files of the Secret that is mounted into the pod to the daemon's
// directory, again and again: kubelet changes them some time after the Secret.
func (a *Agent) handOver(ctx context.Context) error {
	const poll = 5 * time.Second
	for last := ""; ; {
		err := syncFiles(a.Credentials, a.machine.CredentialsDir(), a.PodCredentials != nil)
		if now := fmt.Sprint(err); err != nil && now != last {
			a.Logger.Error("credentials are not handed over to the snapshotter", "error", err)
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(poll):
		}
	}
}

// syncFiles makes the files *.json of to those of from, which need not exist. podsFile
// is kept where pods is true.
func syncFiles(from, to string, pods bool) error {
	all, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the Secret is optional
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	keep := map[string]bool{podsFile: pods}
	for _, e := range all {
		if !strings.HasSuffix(e.Name(), ".json") || e.Name() == podsFile {
			continue
		}
		text, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		keep[e.Name()] = true
		if err := replaceFile(filepath.Join(to, e.Name()), text); err != nil {
			return err
		}
	}
	old, err := os.ReadDir(to)
	if err != nil {
		return err
	}
	for _, e := range old {
		if strings.HasSuffix(e.Name(), ".json") && !keep[e.Name()] {
			if err := os.Remove(filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceFile writes a file for root alone, unless it is the same already.
func replaceFile(path string, text []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return service.WriteFile(path, text, 0o600)
}
