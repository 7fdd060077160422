package blobfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{fmt.Errorf("x: %w", context.Canceled), syscall.EINTR},
		{context.DeadlineExceeded, syscall.EIO},
		{fmt.Errorf("x: %w", fs.ErrNotExist), syscall.ENOENT},
		{io.ErrUnexpectedEOF, syscall.EIO},
	} {
		if got := errno(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := &limiter{now: func() time.Time { return now }, seen: map[uint64]*silence{}}
	ask := func(id uint64, ok bool, swallowed int) {
		t.Helper()
		if n, got := l.allow(id); got != ok || n != swallowed {
			t.Errorf("blob %d: %v, %d swallowed", id, got, n)
		}
	}
	ask(5, true, 0)
	ask(5, false, 0)
	ask(5, false, 0)
	ask(6, true, 0)
	now = now.Add(limitEvery)
	ask(5, true, 2)
	for id := range uint64(3 * limitBlobs) {
		ask(100+id, true, 0)
	}
	if len(l.seen) > limitBlobs {
		t.Errorf("%d blobs remembered", len(l.seen))
	}
}

func TestKillPending(t *testing.T) {
	const status = "Name:\tx\nSigPnd:\t%s\nShdPnd:\t%s\nSigBlk:\t0000000000000100\n"
	for _, c := range []struct {
		own, shared string
		want        bool
	}{
		{"0000000000000000", "0000000000000000", false},
		{"0000000000000100", "0000000000000000", true},
		{"0000000000000000", "0000000000000100", true},
		{"0000000000400000", "0000000000004000", false}, // SIGURG, SIGTERM
		{"junk", "", false},
	} {
		if got := killPending(fmt.Appendf(nil, status, c.own, c.shared)); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if dying(0) || dying(uint32(os.Getpid())) {
		t.Error("the living are taken for dying")
	}
	if !dying(1 << 30) {
		t.Error("a thread that is gone is taken for alive")
	}
}

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	for err, want := range map[error]string{
		syscall.ENOENT: "modprobe fuse", syscall.ENODEV: "modprobe fuse",
		syscall.EPERM: "root", syscall.EACCES: "root",
	} {
		if got := openError(err); !strings.Contains(got.Error(), want) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if got := mountError("/x", syscall.EPERM).Error(); !strings.Contains(got, "CAP_SYS_ADMIN") {
		t.Error(got)
	}
}

// short gives fewer bytes than asked for and no error.
type short struct{ Store }

func (short) ReadAt(_ context.Context, _ uint64, p []byte, _ int64) (int, error) {
	return len(p) - 1, nil
}

func TestShortAnswerIsAnError(t *testing.T) {
	f := &rawFS{store: short{}}
	if err := f.fill(t.Context(), 5, make([]byte, 10), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func FuzzLoadState(f *testing.F) {
	f.Add([]byte(`{"boot":"b","device":"0:1","init":"AAAA"}`))
	f.Add([]byte(`{"boot":"b","device":"0:1"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(file, state{Boot: "b", Device: "0:1"})
		if err != nil {
			t.Fatal(err)
		}
		if s != nil && !isInit(s.Init) {
			t.Errorf("believed %q", b)
		}
	})
}
