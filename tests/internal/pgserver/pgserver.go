// Package pgserver runs PostgreSQL servers of a test's own, from the programs that
// are installed: they can be stopped, killed and started again, and followed by a
// streaming replica that is a chosen time behind.
package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long a server may take to do what it is told.
const patience = 30 * time.Second

// Server is a server with a folder of its own. Its methods fail the test where they
// cannot do what they say; they are for the goroutine of the test.
type Server struct {
	t        testing.TB
	programs string // the folder of postgres, initdb and pg_basebackup
	dir      string
	port     int
	process  *os.Process
	exited   chan struct{}
}

// New starts an empty server, with trust for local clients, that is gone when the
// test ends. What it is told is safe from a crash of the server, and not of the machine: fsync
// is off. The settings are lines of postgresql.conf, which come last. Where the
// programs are missing, the test is skipped, and with CI=true fails.
func New(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := create(t)
	s.run("initdb", "--pgdata", s.data(), "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C", "--no-sync")
	s.configure(append([]string{
		"fsync = off",
		"max_connections = 60",
		"shared_buffers = 16MB",
		"wal_level = replica",
	}, settings...))
	s.Start()
	return s
}

// Replica starts a streaming replica that applies each commit so long after the
// primary made it.
func (s *Server) Replica(delay time.Duration) *Server {
	s.t.Helper()
	r := create(s.t)
	r.run("pg_basebackup", "--pgdata", r.data(), "--dbname", s.DSN(),
		"--write-recovery-conf", "--wal-method", "stream", "--checkpoint", "fast", "--no-sync")
	r.configure([]string{"hot_standby = on", fmt.Sprintf("recovery_min_apply_delay = %dms", delay.Milliseconds())})
	r.Start()
	return r
}

// DSN is how to connect to it.
func (s *Server) DSN() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable", s.port)
}

// Start starts the server again, and returns when it answers.
func (s *Server) Start() {
	s.t.Helper()
	err := Until(patience, func() error {
		// One that was killed holds its memory until the last of its processes has gone.
		if s.exited == nil {
			if err := s.launch(); err != nil {
				return err
			}
		}
		select {
		case <-s.exited:
			s.exited = nil
			return errors.New("it has ended")
		default:
			return s.Ping()
		}
	})
	if err != nil {
		s.t.Fatalf("PostgreSQL does not start: %v\n%s", err, s.log())
	}
}

// Ping asks the server whether it answers.
func (s *Server) Ping() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// Stop stops the server at once, as pg_ctl's mode "immediate" does: it ends its
// connections where they are, and recovers when it is started again.
func (s *Server) Stop() {
	s.t.Helper()
	s.end(func() { _ = s.process.Signal(syscall.SIGQUIT) })
}

// Kill kills the server's processes, which learn nothing of it.
func (s *Server) Kill() {
	s.t.Helper()
	s.end(func() {
		processes := append([]int{s.process.Pid}, children(s.process.Pid)...)
		for _, pid := range processes {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	})
}

func (s *Server) end(signal func()) {
	s.t.Helper()
	if s.exited == nil {
		return
	}
	signal()
	select {
	case <-s.exited:
		s.exited = nil
	case <-time.After(patience):
		_ = s.process.Kill()
		s.t.Fatal("PostgreSQL does not stop")
	}
}

// Until calls fn until it returns nil, for at most so long, and returns its last error.
func Until(limit time.Duration, fn func() error) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(limit); ; <-again.C {
		err := fn()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// create makes the folder of a server that is not there yet.
func create(t testing.TB) *Server {
	t.Helper()
	programs, err := find()
	if err == nil {
		err = checkUser()
	}
	if err != nil {
		const remedy = "install PostgreSQL's server programs, as by apt-get install postgresql"
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: %s", err, remedy)
		}
		t.Skipf("%v: %s", err, remedy)
	}
	// Not t.TempDir: the server's user, who is not root, could not enter it.
	dir, err := os.MkdirTemp("", "gormsessions-pg")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, programs: programs, dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of PostgreSQL at port %d ends:\n%s", s.port, s.log())
		}
		s.Stop()
		if err := Until(patience, func() error { return os.RemoveAll(dir) }); err != nil { // its last processes may still write
			t.Errorf("clean up: %v", err)
		}
	})
	if err := giveAway(dir); err != nil {
		t.Fatal(err)
	}
	if s.port, err = freePort(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// configure adds settings to postgresql.conf, where the last of a name holds.
func (s *Server) configure(settings []string) {
	s.t.Helper()
	settings = append([]string{
		fmt.Sprintf("port = %d", s.port),
		"listen_addresses = '127.0.0.1'",
		fmt.Sprintf("unix_socket_directories = '%s'", s.dir),
		"log_min_error_statement = panic", // what the test asks for is no news
	}, settings...)
	file, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = file.WriteString("\n" + strings.Join(settings, "\n") + "\n")
	if err := errors.Join(err, file.Close()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) command(program string, args ...string) *exec.Cmd {
	command := exec.Command(filepath.Join(s.programs, program), args...)
	command.Dir = s.dir
	command.Env = append(os.Environ(), "LC_ALL=C", "HOME="+s.dir)
	command.SysProcAttr = attributes()
	return command
}

func (s *Server) run(program string, args ...string) {
	s.t.Helper()
	if out, err := s.command(program, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// launch starts the server's first process.
func (s *Server) launch() error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	command := s.command("postgres", "-D", s.data())
	command.Stdout, command.Stderr = log, log
	started, exited := make(chan error), make(chan struct{})
	go func() {
		// Linux ends the server with the thread that started it: so it ends with
		// the test also where that is killed, and not before.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		_ = log.Close()
		if started <- err; err != nil {
			return
		}
		_ = command.Wait()
		close(exited)
	}()
	if err := <-started; err != nil {
		return err
	}
	s.process, s.exited = command.Process, exited
	return nil
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// log is the end of what the server has said.
func (s *Server) log() string {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return ""
	}
	return string(text[max(0, len(text)-2000):])
}

// find finds the folder of the server's programs, which is seldom in the PATH.
func find() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	var folders []string
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		folders = append(folders, string(bytes.TrimSpace(out)))
	}
	installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	for i := range installed { // the newest first, in most cases
		folders = append(folders, installed[len(installed)-1-i])
	}
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, "initdb")); err == nil {
			return folder, nil
		}
	}
	return "", errors.New("initdb is missing")
}

// freePort is one below those that systems give to outgoing connections: it is
// still free when a server that was stopped is started again.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port was found")
}
