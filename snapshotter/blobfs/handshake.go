package blobfs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// opInit is FUSE_INIT, the first request of a connection and the only one
	// until it is answered (include/uapi/linux/fuse.h).
	opInit = 26
	// opRead is FUSE_READ; readSize is the offset of size in struct fuse_read_in.
	opRead, readSize = 15, 16
	// initMaxWrite is the offset of max_write in struct fuse_init_out.
	initMaxWrite = 20
	// notifyResend is FUSE_NOTIFY_RESEND.
	notifyResend = 7
	// inHeaderSize and outHeaderSize are sizeof(struct fuse_in_header) and
	// sizeof(struct fuse_out_header).
	inHeaderSize, outHeaderSize = 40, 16
	// initWait bounds how long a new connection may take to ask; the kernel queues
	// FUSE_INIT within mount(2).
	initWait = 10 * time.Second
)

// errNoResend says that the kernel is older than 6.9.
var errNoResend = errors.New("kernel cannot resend FUSE requests")

// state is what the next daemon must know of a connection, kept as JSON in
// Options.StateFile.
type state struct {
	// Boot and Device tell connections apart: the boot id, and the device number
	// of the mount ("0:55"), "" when it is unknown.
	Boot   string `json:"boot"`
	Device string `json:"device"`
	// Init is the kernel's FUSE_INIT message, header included.
	Init []byte `json:"init"`
}

// currentState describes the connection of the mount at dir, without its INIT.
func currentState(dir string) (state, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return state{}, fmt.Errorf("tell boots apart: %w", err)
	}
	info, err := mountAt(dir)
	if err != nil {
		return state{}, err
	}
	return state{Boot: strings.TrimSpace(string(boot)), Device: fmt.Sprintf("%d:%d", info.Major, info.Minor)}, nil
}

// loadState reads the state file; nil when there is none for the connection of
// now. A damaged file is one of another connection.
func loadState(file string, now state) (*state, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read FUSE state: %w", err)
	}
	var s state
	if json.Unmarshal(b, &s) != nil || s.Boot != now.Boot || s.Device != now.Device || !isInit(s.Init) {
		return nil, nil
	}
	return &s, nil
}

// save writes the state in one step. It is not synced: after a power cut the boot
// id differs anyway.
func (s state) save(file string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode FUSE state: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write FUSE state: %w", err)
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write FUSE state: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// opening finds how a connection must be entered: first is the kernel's INIT
// message, and fresh says that the kernel waits for an answer to it.
//
// The state is saved before INIT is answered, and a daemon may die between the
// two. So the file alone does not prove that the connection is open; the kernel
// is asked: an unanswered INIT comes first after a resend, anything else means
// that the connection is open. What is read here to find out is left unanswered;
// the resend after the handshake brings it back.
func opening(dev int, file string, now state) (first []byte, fresh bool, err error) {
	saved, err := loadState(file, now)
	if err != nil {
		return nil, false, err
	}
	wait := initWait
	if saved != nil {
		wait = 0
	}
	switch err := resend(dev); {
	case errors.Is(err, errNoResend) && saved != nil:
		// A request that is read here would be lost, so the file is believed.
		return saved.Init, false, nil
	case err != nil && !errors.Is(err, errNoResend):
		return nil, false, err
	}
	msg, err := readRequest(dev, wait)
	switch {
	case err != nil:
		return nil, false, err
	case isInit(msg):
		now.Init = msg
		return msg, true, now.save(file)
	case saved == nil:
		return nil, false, fmt.Errorf("FUSE connection is open, but %s does not describe it: restart the process that holds it", file)
	default:
		return saved.Init, false, nil
	}
}

// readRequest reads one request, or nothing (nil) when none comes in time. dev is
// non-blocking: what poll saw may be withdrawn before read.
func readRequest(dev int, wait time.Duration) ([]byte, error) {
	buf := make([]byte, requestSize)
	deadline := time.Now().Add(wait)
	for {
		left := max(time.Until(deadline), 0)
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(dev), Events: unix.POLLIN}}, int(left.Milliseconds()))
		n := 0
		if err == nil {
			n, err = unix.Read(dev, buf)
		}
		switch {
		case err == nil:
			return buf[:n], nil
		case errors.Is(err, unix.ENODEV):
			return nil, fmt.Errorf("FUSE connection is gone (unmounted or aborted): %w", err)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			if left == 0 {
				return nil, nil
			}
		default:
			return nil, fmt.Errorf("read FUSE device: %w", err)
		}
	}
}

// opcode is what a request asks for.
func opcode(msg []byte) uint32 { return binary.NativeEndian.Uint32(msg[4:]) }

// isInit tells whether a message is FUSE_INIT.
func isInit(msg []byte) bool {
	return len(msg) >= inHeaderSize+16 && opcode(msg) == opInit
}

// resend asks the kernel to queue again what was read and not answered. The
// daemon that read it must have ended.
func resend(dev int) error {
	// A notification is an out header with unique 0 and its code as the error.
	var msg [outHeaderSize]byte
	binary.NativeEndian.PutUint32(msg[0:], outHeaderSize)
	binary.NativeEndian.PutUint32(msg[4:], notifyResend)
	_, err := unix.Write(dev, msg[:])
	switch {
	case errors.Is(err, unix.EINVAL):
		return errNoResend
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("FUSE connection is gone (unmounted or aborted): %w", err)
	case err != nil:
		return fmt.Errorf("resend FUSE requests: %w", err)
	}
	return nil
}
