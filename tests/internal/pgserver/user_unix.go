//go:build unix

package pgserver

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"sync"
	"syscall"
)

// unprivileged is whom the server runs as where the test runs as root, which
// PostgreSQL refuses to.
var unprivileged = sync.OnceValues(func() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(found.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(found.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
})

func root() bool { return os.Geteuid() == 0 }

func checkUser() error {
	if !root() {
		return nil
	}
	_, err := unprivileged()
	return err
}

// giveAway makes a folder the server's user's.
func giveAway(dir string) error {
	if !root() {
		return nil
	}
	who, err := unprivileged()
	if err != nil {
		return err
	}
	return os.Chown(dir, int(who.Uid), int(who.Gid))
}

func attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{}
	if root() {
		attr.Credential, _ = unprivileged()
	}
	endWithParent(attr)
	return attr
}
