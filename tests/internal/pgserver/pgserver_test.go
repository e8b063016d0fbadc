package pgserver_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions/tests/internal/pgserver"
	"github.com/jackc/pgx/v5"
)

// TestServer stops, kills and starts a server, and follows it by a replica.
func TestServer(t *testing.T) {
	primary := pgserver.New(t)
	count(t, primary, "CREATE TABLE kept AS SELECT 1 AS n")
	replica := primary.Replica(time.Second)
	begun := time.Now()
	count(t, primary, "INSERT INTO kept VALUES (2)")
	if err := pgserver.Until(20*time.Second, func() error {
		if count(t, replica, "") != 2 {
			return errors.New("the replica does not follow")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if behind := time.Since(begun); behind < time.Second {
		t.Errorf("the replica is %v behind, want a second", behind)
	}
	for name, end := range map[string]func(){"stopped": primary.Stop, "killed": primary.Kill} {
		end()
		if primary.Ping() == nil {
			t.Errorf("%s, it answers", name)
		}
		primary.Start()
		if n := count(t, primary, ""); n != 2 {
			t.Errorf("%s and started, it has %d rows, want 2", name, n)
		}
	}
}

// TestNothingIsLeft looks for what servers leave when their test ends.
func TestNothingIsLeft(t *testing.T) {
	dir, err := os.MkdirTemp("", "pg") // not t.TempDir: the server's user must enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	var primary *pgserver.Server
	t.Run("server", func(t *testing.T) {
		primary = pgserver.New(t)
		primary.Replica(0)
	})
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if primary != nil && primary.Ping() == nil {
		t.Error("it still answers")
	}
}

// count runs a statement, and counts the rows of the table.
func count(t *testing.T, s *pgserver.Server, sql string) (n int) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if sql != "" {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM kept").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
