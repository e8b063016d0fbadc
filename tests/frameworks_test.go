package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/glebarez/sqlite"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/adaptor"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"github.com/labstack/echo/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

type Account struct {
	ID    uint
	Email string
}

type AccountSession struct {
	gormsessions.Session[Account, uint]
	Device string
}

type AccountKey struct {
	gormsessions.Session[Account, uint]
	gormsessions.Abilities
}

// signIn creates a session and sets its cookie, by Web.SignIn.
type signIn = func(http.ResponseWriter, *http.Request) error

// The recipes: one application in each framework. Copy what you need.

// chiApp: chi's middleware is that of net/http.
func chiApp(web *sessionhttp.Web[AccountSession], signIn signIn) http.Handler {
	router := chi.NewRouter()
	router.Use(web.Handler)
	router.With(web.Require).Get("/account", func(w http.ResponseWriter, r *http.Request) {
		s, _ := sessionhttp.FromContext[AccountSession](r.Context())
		_, _ = fmt.Fprint(w, "hello, ", s.Owner.Email)
	})
	router.Post("/sign-in", func(w http.ResponseWriter, r *http.Request) {
		if err := signIn(w, r); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	router.Post("/sign-out", func(w http.ResponseWriter, r *http.Request) {
		if err := web.SignOut(w, r); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return router
}

// ginApp: Handler goes around the engine, which is an http.Handler.
func ginApp(web *sessionhttp.Web[AccountSession], signIn signIn) http.Handler {
	require := func(c *gin.Context) {
		if _, err := web.Check(c.Request); err != nil {
			web.Refuse(c.Writer, c.Request, err)
			c.Abort()
		}
	}
	engine := gin.New()
	engine.GET("/account", require, func(c *gin.Context) {
		s, _ := sessionhttp.FromContext[AccountSession](c.Request.Context())
		c.String(http.StatusOK, "hello, %s", s.Owner.Email)
	})
	engine.POST("/sign-in", func(c *gin.Context) {
		if err := signIn(c.Writer, c.Request); err != nil {
			c.AbortWithStatus(http.StatusServiceUnavailable)
		}
	})
	engine.POST("/sign-out", func(c *gin.Context) {
		if err := web.SignOut(c.Writer, c.Request); err != nil {
			c.AbortWithStatus(http.StatusServiceUnavailable)
		}
	})
	return web.Handler(engine)
}

// echoApp: echo.WrapMiddleware takes Handler and Require as they are.
func echoApp(web *sessionhttp.Web[AccountSession], signIn signIn) http.Handler {
	e := echo.New()
	e.Use(echo.WrapMiddleware(web.Handler))
	e.GET("/account", func(c echo.Context) error {
		s, _ := sessionhttp.FromContext[AccountSession](c.Request().Context())
		return c.String(http.StatusOK, "hello, "+s.Owner.Email)
	}, echo.WrapMiddleware(web.Require))
	e.POST("/sign-in", func(c echo.Context) error {
		if err := signIn(c.Response(), c.Request()); err != nil {
			return echo.NewHTTPError(http.StatusServiceUnavailable)
		}
		return c.NoContent(http.StatusOK)
	})
	e.POST("/sign-out", func(c echo.Context) error {
		if err := web.SignOut(c.Response(), c.Request()); err != nil {
			return echo.NewHTTPError(http.StatusServiceUnavailable)
		}
		return c.NoContent(http.StatusOK)
	})
	return e
}

// fiberApp: fiber has requests of its own. The adaptor converts them, but keeps one
// header of each name: all of them are put back, for two credentials are refused.
func fiberApp(web *sessionhttp.Web[AccountSession], signIn signIn) *fiber.App {
	type session struct{} // the key of c.Locals
	require := func(c fiber.Ctx) error {
		var s *AccountSession
		ctx, headers := c.Context(), c.GetReqHeaders()
		err := adaptor.HTTPHandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header = headers
			web.Require(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				s, _ = sessionhttp.FromContext[AccountSession](r.Context())
			})).ServeHTTP(w, r.WithContext(ctx))
		})(c)
		if err != nil || s == nil {
			return err // it is answered
		}
		c.Locals(session{}, s)
		return c.Next()
	}
	app := fiber.New()
	app.Get("/account", require, func(c fiber.Ctx) error {
		return c.SendString("hello, " + fiber.Locals[*AccountSession](c, session{}).Owner.Email)
	})
	app.Post("/sign-in", adaptor.HTTPHandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := signIn(w, r); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	app.Post("/sign-out", adaptor.HTTPHandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := web.SignOut(w, r); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	return app
}

// authenticate is a gRPC interceptor for keys in the metadata "authorization".
func authenticate(api *sessionhttp.Web[AccountKey]) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		r := (&http.Request{Header: http.Header{"Authorization": md.Get("authorization")}}).WithContext(ctx)
		key, err := api.Check(r)
		switch {
		case errors.Is(err, gormsessions.ErrNoSession):
			return nil, status.Error(codes.Unauthenticated, "a valid key is missing")
		case err != nil:
			return nil, status.Error(codes.Unavailable, "try again later")
		}
		return next(sessionhttp.NewContext(ctx, key), req)
	}
}

func openAccounts(t *testing.T) (*gorm.DB, Account) {
	t.Helper()
	db, err := gorm.Open(sqlite.Open(filepath.Join(t.TempDir(), "test.db")+
		"?_pragma=foreign_keys(1)&_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)&_txlock=immediate"), &gorm.Config{Logger: logger.Discard})
	must(t, err)
	t.Cleanup(func() { closePool(t, db) })
	must(t, db.AutoMigrate(&Account{}))
	account := Account{Email: "ada@example.com"}
	must(t, db.Create(&account).Error)
	return db, account
}

func closePool(t *testing.T, db *gorm.DB) {
	t.Helper()
	pool, err := db.DB()
	must(t, err)
	must(t, pool.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFrameworks walks through the same application in each framework.
func TestFrameworks(t *testing.T) {
	gin.SetMode(gin.ReleaseMode)
	type do = func(*http.Request) (*http.Response, error)
	standard := func(app func(*sessionhttp.Web[AccountSession], signIn) http.Handler) func(*sessionhttp.Web[AccountSession], signIn) do {
		return func(web *sessionhttp.Web[AccountSession], signIn signIn) do {
			handler := app(web, signIn)
			return func(r *http.Request) (*http.Response, error) {
				rec := httptest.NewRecorder()
				handler.ServeHTTP(rec, r)
				return rec.Result(), nil
			}
		}
	}
	for name, app := range map[string]func(*sessionhttp.Web[AccountSession], signIn) do{
		"chi":  standard(chiApp),
		"gin":  standard(ginApp),
		"echo": standard(echoApp),
		"fiber": func(web *sessionhttp.Web[AccountSession], signIn signIn) do {
			app := fiberApp(web, signIn)
			return func(r *http.Request) (*http.Response, error) { return app.Test(r) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			db, account := openAccounts(t)
			sessions := gormsessions.New[AccountSession](gormsessions.Config{TouchInterval: time.Microsecond})
			must(t, db.Use(sessions))
			web, err := sessionhttp.New(sessions, sessionhttp.Config{
				Scopes:    []gormsessions.Scope{gormsessions.WithOwner},
				SignInURL: "/sign-in",
				OnError:   func(*http.Request, error) {},
			})
			must(t, err)
			do := app(web, func(w http.ResponseWriter, r *http.Request) error {
				s := AccountSession{Device: r.UserAgent()}
				s.OwnerID = account.ID
				return web.SignIn(w, r, &s)
			})

			var cookies []string
			ask := func(method, path string, status int, want string) *http.Response {
				t.Helper()
				r := httptest.NewRequest(method, path, nil)
				for _, c := range cookies {
					r.Header.Add("Cookie", c)
				}
				res, err := do(r)
				must(t, err)
				text, err := io.ReadAll(res.Body)
				must(t, err)
				if got := strings.TrimSpace(string(text)); res.StatusCode != status || got != want {
					t.Errorf("%s %s: got %d %q, want %d %q", method, path, res.StatusCode, got, status, want)
				}
				if got := res.Header.Get("Cache-Control") + ", " + res.Header.Get("Vary"); status != 503 && got != "no-store, Cookie" {
					t.Errorf("%s %s: got %q", method, path, got)
				}
				return res
			}
			keep := func(res *http.Response) string {
				t.Helper()
				for _, c := range res.Cookies() {
					if c.Name == sessionhttp.DefaultCookieName && c.Secure && c.HttpOnly {
						return c.Name + "=" + c.Value
					}
				}
				t.Error("no cookie is set")
				return ""
			}

			if got := ask("GET", "/account", 401, "Unauthorized").Header.Get("WWW-Authenticate"); got == "" {
				t.Error("no WWW-Authenticate")
			}
			first := keep(ask("POST", "/sign-in", 200, ""))
			cookies = []string{first}
			if got := keep(ask("GET", "/account", 200, "hello, ada@example.com")); got != first {
				t.Errorf("the cookie of an extended session: got %q", got)
			}
			second := keep(ask("POST", "/sign-in", 200, ""))
			cookies = []string{first}
			ask("GET", "/account", 401, "Unauthorized") // ended by the second
			cookies = []string{first, second}
			ask("GET", "/account", 400, "Bad Request")
			cookies = []string{second}
			ask("GET", "/account", 200, "hello, ada@example.com")
			keep(ask("POST", "/sign-out", 200, ""))
			ask("GET", "/account", 401, "Unauthorized")

			page := httptest.NewRequest("GET", "/account?a=b", nil)
			page.Header.Set("Accept", "text/html")
			res, err := do(page)
			must(t, err)
			if got := res.Header.Get("Location"); res.StatusCode != 303 || got != "/sign-in?return_to=%2Faccount%3Fa%3Db" {
				t.Errorf("a page: got %d to %q", res.StatusCode, got)
			}

			cookies = []string{keep(ask("POST", "/sign-in", 200, ""))}
			closePool(t, db)
			if res := ask("GET", "/account", 503, "Service Unavailable"); len(res.Header["Set-Cookie"]) != 0 {
				t.Error("the cookie is changed")
			}
		})
	}
}

// TestGRPC calls a service through the interceptor.
func TestGRPC(t *testing.T) {
	db, account := openAccounts(t)
	keys := gormsessions.New[AccountKey](gormsessions.Config{Prefix: "acme"})
	must(t, db.Use(keys))
	api, err := sessionhttp.New(keys, sessionhttp.Config{Sources: []sessionhttp.Source{sessionhttp.Bearer()}})
	must(t, err)
	key := AccountKey{Abilities: gormsessions.Abilities{"health:read"}}
	key.OwnerID = account.ID
	must(t, keys.Create(t.Context(), &key))

	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.UnaryInterceptor(authenticate(api)))
	health.RegisterHealthServer(server, healthServer{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })

	call := func(want codes.Code, metadataPairs ...string) {
		t.Helper()
		_, err := health.NewHealthClient(conn).Check(metadata.AppendToOutgoingContext(t.Context(), metadataPairs...), &health.HealthCheckRequest{})
		if got := status.Code(err); got != want {
			t.Errorf("%d values: got %v (%v), want %v", len(metadataPairs)/2, got, err, want)
		}
	}
	good := "Bearer " + string(key.Token)
	call(codes.Unauthenticated)
	call(codes.Unauthenticated, "authorization", "Bearer abc")
	call(codes.Unauthenticated, "authorization", good, "authorization", "Bearer abc")
	call(codes.OK, "authorization", good)
	_, err = keys.Revoke(t.Context(), "lost", gormsessions.WithID(key.ID))
	must(t, err)
	call(codes.Unauthenticated, "authorization", good)
	closePool(t, db)
	call(codes.Unavailable, "authorization", good)
}

// healthServer is healthy for keys that may ask.
type healthServer struct {
	health.UnimplementedHealthServer
}

func (healthServer) Check(ctx context.Context, _ *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	if key, ok := sessionhttp.FromContext[AccountKey](ctx); !ok || !key.Can("health:read") {
		return nil, status.Error(codes.PermissionDenied, "this key may not")
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}
