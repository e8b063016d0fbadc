package gormsessions_test

import (
	"crypto"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// around is what the README's fragments stand in.
const around = `package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/gormsessions/gormsessions/sessioncache/pgnotify"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"gorm.io/gorm"
)

var (
	_        = sessioncache.New
	_        = pgnotify.New
	pepper   []byte
	list     []UserSession
	s        UserSession
	deployed time.Time
	web      *sessionhttp.Web[UserSession]
	mux      *http.ServeMux
	posts    http.Handler
	_        = uuid.Parse
	_        = http.Error
	_        = errors.Is
	_        = fmt.Sprint
	_        = slog.Default
)

type AuditEntry struct {
	Kind, Reason string
	SessionID    uuid.UUID
	At           time.Time
}

type User struct {
	ID    uint
	Email string
}

func main() {}

var _ = time.Second
var _ = crypto.SHA256
`

const fragment = `
func _(ctx context.Context, db *gorm.DB, user User%s) (err error) {
	{
		%s
	}
	return err
}
`

// TestREADME runs the README's program and compares what it prints, and compiles
// every other piece of Go in it.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```\n").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 6 {
		t.Fatalf("%d pieces of Go found", len(blocks))
	}
	var program, fragments strings.Builder
	for _, block := range blocks {
		code := block[1]
		if strings.HasPrefix(code, "package main") {
			program.WriteString(code)
			continue
		}
		code = regexp.MustCompile(`(?m)^gormsessions\.Config\{`).ReplaceAllString(code, "_ = gormsessions.Config{")
		declared := ", sessions *gormsessions.Plugin[UserSession]"
		if strings.Contains(code, "sessions := ") {
			declared = ""
		}
		fmt.Fprintf(&fragments, fragment, declared, code)
	}
	dir := t.TempDir()

	t.Run("program", func(t *testing.T) {
		file := filepath.Join(dir, "main.go")
		write(t, file, program.String())
		binary := filepath.Join(dir, "program")
		if out, err := exec.Command("go", "build", "-o", binary, file).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		run := exec.Command(binary)
		run.Dir = dir
		out, err := run.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		want := regexp.MustCompile("(?ms)^```text\n(.*?)^```\n").FindSubmatch(text)
		if want == nil || string(out) != string(want[1]) {
			t.Errorf("it prints\n%s, the README says\n%s", out, want)
		}
	})

	t.Run("fragments", func(t *testing.T) {
		file := filepath.Join(dir, "fragments.go")
		session := "\ntype UserSession struct {\n\tgormsessions.Session[User, uint]\n\tDevice string\n}\n"
		write(t, file, around+session+fragments.String())
		out, err := exec.Command("go", "build", "-gcflags=-e", "-o", os.DevNull, file).CombinedOutput()
		if err == nil {
			return
		}
		// A fragment declares what a reader goes on to use.
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") && !strings.Contains(line, "declared and not used") {
				t.Error(line)
			}
		}
	})

	t.Run("import", func(t *testing.T) {
		d := conformance.PostgreSQL()
		db := d.Open(t, d.Dialect(t), &gorm.Config{Logger: logger.Discard})
		sessions := gormsessions.New[UserSession](gormsessions.Config{AcceptForeign: true, Hashers: []gormsessions.Hasher{
			gormsessions.HMAC(crypto.SHA256, make([]byte, 32)), gormsessions.Hash(crypto.SHA256)}})
		if err := db.Use(sessions); err != nil {
			t.Fatal(err)
		}
		signUp(db, "ada@example.com")
		// The table as the migration of ecto_sessions makes it.
		for _, sql := range []string{
			`CREATE TABLE sessions (id uuid PRIMARY KEY, auth_token_digest varchar(255) NOT NULL, data jsonb NOT NULL DEFAULT '{}', expires_at timestamp,
				user_id varchar(255) NOT NULL, inserted_at timestamp NOT NULL, updated_at timestamp NOT NULL)`,
			`INSERT INTO sessions SELECT gen_random_uuid(), 'af2bdbe1aa9b6ec1e2ade1d694f41fc71a831d0268e9891562113d8a62add1bf', '{"a":1}',
				(now() AT TIME ZONE 'utc') + interval '1 hour', '1', now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc'`,
			`ALTER TABLE user_sessions ALTER device SET DEFAULT ''`,
			string(regexp.MustCompile("(?ms)^```sql\n(INSERT.*?)^```\n").FindSubmatch(text)[1]),
		} {
			if err := db.Exec(sql).Error; err != nil {
				t.Fatal(err)
			}
		}
		got, err := sessions.Authenticate(t.Context(), "sample", gormsessions.WithOwner)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(*got.ExpiresAt); left < 6*24*time.Hour || got.IdleTimeout != 7*24*time.Hour || got.Owner.Email != "ada@example.com" {
			t.Errorf("imported: %v left, %+v", left, got)
		}
	})

	t.Run("statement", func(t *testing.T) {
		db, sessions := openSessions()
		var got string
		if err := db.Callback().Query().After("gorm:query").Register("test:statement", func(db *gorm.DB) {
			got = db.Statement.SQL.String()
		}); err != nil {
			t.Fatal(err)
		}
		s := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux")
		if _, err := sessions.Lookup(t.Context(), string(s.Token), gormsessions.WithOwner); err != nil {
			t.Fatal(err)
		}
		got = regexp.MustCompile(`^SELECT .* FROM`).ReplaceAllString(strings.ReplaceAll(got, "`", ""), "SELECT … FROM")
		want := regexp.MustCompile("(?ms)^```sql\n(.*?)^```\n").FindSubmatch(text)
		if want == nil || got != strings.Join(strings.Fields(string(want[1])), " ") {
			t.Errorf("Authenticate runs\n%s\nthe README says\n%s", got, want)
		}
	})
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSECURITY checks that every test which SECURITY.md names is there.
func TestSECURITY(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	// Declarations and the names of subtests; a comment is no test.
	tests := map[string]bool{}
	for _, pattern := range []string{"*_test.go", "internal/conformance/*.go", "tests/*_test.go", "sessionhttp/*_test.go", "examples/demo/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					tests[n.Name.Name] = true
				case *ast.ValueSpec:
					for _, name := range n.Names {
						tests[name.Name] = true
					}
				case *ast.AssignStmt:
					for _, left := range n.Lhs {
						if name, ok := left.(*ast.Ident); ok {
							tests[name.Name] = true
						}
					}
				case *ast.CallExpr:
					if run, ok := n.Fun.(*ast.SelectorExpr); ok && run.Sel.Name == "Run" && len(n.Args) == 2 {
						if name, ok := n.Args[0].(*ast.BasicLit); ok {
							text, _ := strconv.Unquote(name.Value)
							tests[strings.ReplaceAll(text, " ", "_")] = true
						}
					}
				}
				return true
			})
		}
	}
	named := 0
	for row := range strings.Lines(string(text)) {
		cells := strings.Split(row, "|")
		if len(cells) < 4 {
			continue
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[3], -1) {
			named++
			if !tests[name[1]] {
				t.Errorf("there is no test %s", name[1])
			}
		}
	}
	if named < 40 {
		t.Errorf("%d tests named: the table was not read", named)
	}
}
